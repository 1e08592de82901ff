"""Measure a policy on tokenised pairs: the one way from tokens to `PairLogps`.

Training, the reference column, the probe and `dil eval` all come through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dil_cli.data.batches import micro_batches, pad_rows
from dil_cli.data.packing import fill_packs, pack_pairs, packed_tokens
from dil_cli.distributed.deal import deal
from dil_cli.distributed.world import ALONE, World
from dil_cli.models.logps import packed_logps, padded_logps
from dil_cli.types import PairLogps, TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Layout(str, Enum):
    """How pairs lie in the rows that the model reads: packed with one copy of the prompt or two, or padded."""

    shared = "shared"
    separate = "separate"
    padded = "padded"


@dataclass(frozen=True)
class Compute:
    """How a forward pass is carried out: device, in bfloat16 or not, tokens in a micro-batch, what pads a row.

    `world` are the processes that share the pairs. `layout` is one that the model was seen to take
    (`dynamics/layout.py`); padded rows suit any model.
    """

    device: torch.device
    bf16: bool
    token_budget: int
    pad_id: int
    layout: Layout = Layout.padded
    world: World = ALONE

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of one forward pass."""
        if not self.bf16:
            return nullcontext()
        context: AbstractContextManager[None] = torch.autocast(self.device.type, dtype=torch.bfloat16)
        return context


def split_batch(pairs: Sequence[TokenisedPair], compute: Compute) -> list[list[int]]:
    """Indices into `pairs`, each once, in micro-batches that fit the token budget, the longest first."""
    if compute.layout is Layout.padded:
        return micro_batches(pairs, compute.token_budget)
    return fill_packs(pairs, compute.token_budget, compute.layout is Layout.shared)


@dataclass(frozen=True)
class Share:
    """What one process computes of some pairs: `own` micro-batches, indices into the pairs.

    `fillers` are micro-batches that it computes to no effect, where the others have more of them and a forward pass
    is one of all processes: a gradient of zeros, a log-prob that is left out.
    """

    own: list[list[int]]
    fillers: list[list[int]]


def share_of(pairs: Sequence[TokenisedPair], compute: Compute) -> Share:
    """This process's share, dealt by tokens."""
    world = compute.world
    if world.alone:
        return Share(split_batch(pairs, compute), [])
    sizes = [packed_tokens(pair) for pair in pairs]
    hands = deal(sizes, world.size)
    groups = [[[hand[i] for i in group] for group in split_batch([pairs[i] for i in hand], compute)] for hand in hands]
    own = groups[world.rank]
    missing = max(map(len, groups)) - len(own) if world.sharded else 0
    shortest = min(range(len(sizes)), key=sizes.__getitem__)
    return Share(own, [[shortest]] * missing)


def forward_pairs(model: PreTrainedModel, pairs: Sequence[TokenisedPair], compute: Compute) -> PairLogps:
    """Policy log-probs of one micro-batch, float32 (B,), with the graph if gradients are on.

    A demonstration's rejected log-prob is 0 over 0 tokens.
    """
    if compute.layout is Layout.padded:
        logps_S = _padded(model, pairs, compute)
    else:
        pack = pack_pairs(pairs, compute.layout is Layout.shared, compute.device)
        with compute.autocast():
            logps_S = packed_logps(model, pack)
    return PairLogps(
        policy_chosen_B=logps_S[: len(pairs)],
        policy_rejected_B=logps_S[len(pairs) :],
        chosen_tokens_B=torch.tensor([len(pair.chosen) for pair in pairs], device=compute.device),
        rejected_tokens_B=torch.tensor([len(pair.rejected) for pair in pairs], device=compute.device),
    )


def _padded(model: PreTrainedModel, pairs: Sequence[TokenisedPair], compute: Compute) -> Tensor:
    """Log-probs of the responses (2B,), chosen first, by rows of the same length."""
    rows = pad_rows(pairs, compute.pad_id, compute.device)
    with compute.autocast():
        logps_R = padded_logps(model, rows.input_ids_RT, rows.attention_mask_RT, rows.response_mask_RT)
    owner_R = rows.pair_R.clone()
    owner_R[len(pairs) :] += len(pairs)
    return logps_R.new_zeros(2 * len(pairs)).index_add(0, owner_R, logps_R)


@torch.no_grad()
def score_pairs(
    model: PreTrainedModel,
    pairs: Sequence[TokenisedPair],
    compute: Compute,
    advance: Callable[[int], None] = lambda pairs_done: None,
) -> PairLogps:
    """Policy log-probs of any number of pairs, in their order, on the CPU; `advance` hears of progress.

    Each process computes its share and returns all. Whatever dropout there is (an adapter's), it is off.
    """
    total = len(pairs)
    columns = [torch.zeros(total) for _ in range(2)] + [torch.zeros(total, dtype=torch.long) for _ in range(2)]
    if not total:
        return PairLogps(*columns)
    share = share_of(pairs, compute)
    training = model.training
    model.train(False)
    for group in share.own:
        logps = forward_pairs(model, [pairs[i] for i in group], compute)
        index = torch.tensor(group)
        for column, values_B in zip(columns, _columns(logps), strict=True):
            column[index] = values_B.to(column.device, column.dtype)
        advance(len(group) * compute.world.size)
    for group in share.fillers:
        forward_pairs(model, [pairs[i] for i in group], compute)
    model.train(training)
    return PairLogps(*compute.world.joined(columns))


def with_reference(policy: PairLogps, reference: PairLogps) -> PairLogps:
    """`policy` with the policy columns of `reference` as its reference columns."""
    return replace(
        policy, reference_chosen_B=reference.policy_chosen_B, reference_rejected_B=reference.policy_rejected_B
    )


def _columns(logps: PairLogps) -> list[Tensor]:
    return [logps.policy_chosen_B, logps.policy_rejected_B, logps.chosen_tokens_B, logps.rejected_tokens_B]
