"""Measure a policy on tokenised pairs: the one way from tokens to `PairLogps`.

Training, the reference column, the probe and `dil eval` all come through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dil_cli.data.batches import micro_batches, pad_rows
from dil_cli.models.logps import response_logps
from dil_cli.types import PairLogps, TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Compute:
    """How a forward pass is carried out: device, in bfloat16 or not, tokens in a micro-batch, what pads a row."""

    device: torch.device
    bf16: bool
    token_budget: int
    pad_id: int

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of one forward pass."""
        if not self.bf16:
            return nullcontext()
        context: AbstractContextManager[None] = torch.autocast(self.device.type, dtype=torch.bfloat16)
        return context


def forward_pairs(model: PreTrainedModel, pairs: Sequence[TokenisedPair], compute: Compute) -> PairLogps:
    """Policy log-probs of one micro-batch, float32 (B,), with the graph if gradients are on.

    A demonstration's rejected log-prob is 0 over 0 tokens.
    """
    rows = pad_rows(pairs, compute.pad_id, compute.device)
    with compute.autocast():
        logps_R = response_logps(model, rows.input_ids_RT, rows.attention_mask_RT, rows.response_mask_RT)
    counts_R = rows.response_mask_RT.sum(dim=1)
    rejected_of = rows.pair_R[rows.pairs :]

    def rejected_B(values_R: Tensor) -> Tensor:
        nothing_B = torch.zeros(rows.pairs, dtype=values_R.dtype, device=values_R.device)
        return nothing_B.index_add(0, rejected_of, values_R[rows.pairs :])

    return PairLogps(
        policy_chosen_B=logps_R[: rows.pairs],
        policy_rejected_B=rejected_B(logps_R),
        chosen_tokens_B=counts_R[: rows.pairs],
        rejected_tokens_B=rejected_B(counts_R),
    )


@torch.no_grad()
def score_pairs(
    model: PreTrainedModel,
    pairs: Sequence[TokenisedPair],
    compute: Compute,
    advance: Callable[[int], None] = lambda pairs_done: None,
) -> PairLogps:
    """Policy log-probs of any number of pairs, in their order, on the CPU; `advance` hears of progress."""
    total = len(pairs)
    columns = [torch.zeros(total) for _ in range(2)] + [torch.zeros(total, dtype=torch.long) for _ in range(2)]
    for group in micro_batches(pairs, compute.token_budget):
        logps = forward_pairs(model, [pairs[i] for i in group], compute)
        index = torch.tensor(group)
        for column, values_B in zip(columns, _columns(logps), strict=True):
            column[index] = values_B.to(column.device, column.dtype)
        advance(len(group))
    return PairLogps(*columns)


def with_reference(policy: PairLogps, reference: PairLogps) -> PairLogps:
    """`policy` with the policy columns of `reference` as its reference columns."""
    return replace(
        policy, reference_chosen_B=reference.policy_chosen_B, reference_rejected_B=reference.policy_rejected_B
    )


def _columns(logps: PairLogps) -> list[Tensor]:
    return [logps.policy_chosen_B, logps.policy_rejected_B, logps.chosen_tokens_B, logps.rejected_tokens_B]
