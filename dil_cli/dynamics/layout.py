"""Which layout of rows a model takes: tried on a few pairs before training, against the plainest computation.

Some architectures ignore the attention they are given or place tokens their own way, and say nothing. So the fastest
layout is compared with single unpadded rows, log-probs and gradient, and one that differs gives way to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dil_cli.dynamics.measure import Compute, Layout, forward_pairs
from dil_cli.models.packed_attention import FLEX, TILES, register
from dil_cli.types import TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDING = {True: 3e-2, False: 1e-4}
"""Relative difference that counts as rounding, by whether the weights have two bytes. Autocast is off in the check."""

LEAK = 1e-7
"""Relative change of a pair's log-probs when its neighbour in the row has other tokens; 0 wherever rows were right."""

WORDS = {
    Layout.shared: "packed, each prompt once",
    Layout.separate: "packed, each prompt twice",
    Layout.padded: "padded, of similar length",
}
LENGTHS = ((24, 17, 11), (9, 5, 14), (1, 1, 6))
"""Tokens of prompt, chosen and rejected response of the pairs that are tried."""


@dataclass(frozen=True)
class Choice:
    """The layout a model takes, the attention that goes with it, and a line that says so, and why."""

    compute: Compute
    attention: str
    line: str


@dataclass(frozen=True)
class _Measured:
    """Log-probs of the responses (2B,), and the slope of a weighted sum of them in each kind of token (U, D)."""

    logps_S: Tensor
    slope_UD: Tensor

    def distance(self, other: _Measured) -> float:
        """The larger relative difference of the two."""
        pairs = ((self.logps_S, other.logps_S), (self.slope_UD, other.slope_UD))
        return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def choose_layout(model: PreTrainedModel, compute: Compute, max_length: int) -> Choice:
    """Set the model's attention to the fastest that is right for it.

    Args:
        model: on its device, with the attention that serves padded rows.
        compute: how it will be used; its layout is not looked at.
        max_length: of the rows to come; a sliding window shorter than that is tried too.
    """
    register()
    own = str(model.config._attn_implementation)
    if own in {FLEX, TILES}:  # chosen before: what the model was loaded with is forgotten
        own = "eager"
        model.set_attn_implementation(own)
    pairs = _trial_pairs(model, max_length)
    exact = replace(compute, bf16=False, layout=Layout.padded)
    tolerance = ROUNDING[model.dtype.itemsize == 2]
    expected = _measure_plainly(model, pairs, exact)
    refused: list[tuple[Layout, str, str]] = []
    for layout, attention in _candidates(compute.device):
        try:
            model.set_attn_implementation(attention)
            rows = replace(exact, layout=layout)
            distance = _measure(model, pairs, rows).distance(expected)
            reason = f"it differs by {distance:.0e}"
            if distance <= tolerance and (leak := _leak(model, pairs, rows)) > LEAK:
                distance, reason = float("inf"), f"a pair's neighbour in the row moves it by {leak:.0e}"
        except Exception as error:  # whatever an architecture that was not made for it raises
            distance, reason = float("inf"), str(error).partition("\n")[0] or type(error).__name__
        if distance <= tolerance:
            line = f"rows: {WORDS[layout]} ({attention}, checked to {distance:.0e})"
            return Choice(replace(compute, layout=layout), attention, line + _because(refused))
        refused.append((layout, attention, reason))
    model.set_attn_implementation(own)
    line = f"rows: {WORDS[Layout.padded]} ({own}), slower"
    return Choice(replace(compute, layout=Layout.padded), own, line + _because(refused))


def _because(refused: Sequence[tuple[Layout, str, str]]) -> str:
    """Why not a faster one, each reason once."""
    reasons: dict[str, list[str]] = {}
    for layout, attention, reason in refused:
        reasons.setdefault(reason, []).append(f"{WORDS[layout]} by {attention}")
    return "".join(f"; not {' or '.join(tried)}: {reason}" for reason, tried in reasons.items())


def _candidates(device: torch.device) -> Iterator[tuple[Layout, str]]:
    for layout in (Layout.shared, Layout.separate):
        if device.type == "cuda":
            yield layout, FLEX
        yield layout, TILES


def _trial_pairs(model: PreTrainedModel, max_length: int) -> list[TokenisedPair]:
    """Random pairs no longer than `max_length`; one prompt exceeds the sliding window, where rows can."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    embedding: Any = model.get_input_embeddings()
    numbers = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return numbers.integers(0, embedding.weight.shape[0], count, dtype=np.int32)

    pairs = []
    for row, (prompt, chosen, rejected) in enumerate(LENGTHS):
        beyond = window + 8 if row == 0 and window is not None and window < max_length else prompt
        prompt = min(beyond, max_length - 1)
        chosen, rejected = (min(response, max_length - prompt) for response in (chosen, rejected))
        pairs.append(TokenisedPair(row, ids(prompt), ids(chosen), ids(rejected)))
    return pairs


def _measure_plainly(model: PreTrainedModel, pairs: Sequence[TokenisedPair], compute: Compute) -> _Measured:
    """Each response by itself, in a row of its own without padding."""
    nothing = np.empty(0, dtype=np.int32)
    responses = [(pair, pair.chosen) for pair in pairs] + [(pair, pair.rejected) for pair in pairs]
    with _embeddings(model) as seen:
        single = [replace(pair, chosen=response, rejected=nothing) for pair, response in responses]
        logps_S = torch.cat([forward_pairs(model, [pair], compute).policy_chosen_B for pair in single])
        return _measured(pairs, logps_S, seen)


def _measure(model: PreTrainedModel, pairs: Sequence[TokenisedPair], compute: Compute) -> _Measured:
    """All pairs in one micro-batch."""
    with _embeddings(model) as seen:
        logps = forward_pairs(model, pairs, compute)
        return _measured(pairs, torch.cat([logps.policy_chosen_B, logps.policy_rejected_B]), seen)


@torch.no_grad()
def _leak(model: PreTrainedModel, pairs: Sequence[TokenisedPair], compute: Compute) -> float:
    """How much the pairs after the first change when the first has other tokens, as many of them."""
    first = replace(
        pairs[0], prompt=pairs[0].prompt[::-1], chosen=pairs[0].chosen[::-1], rejected=pairs[0].rejected[::-1]
    )
    before, after = (forward_pairs(model, row, compute) for row in (pairs, [first, *pairs[1:]]))
    now_S, then_S = (torch.cat([x.policy_chosen_B[1:], x.policy_rejected_B[1:]]) for x in (after, before))
    return float(((now_S - then_S).abs() / then_S.abs()).max())


def _measured(pairs: Sequence[TokenisedPair], logps_S: Tensor, seen: Sequence[tuple[Tensor, Tensor]]) -> _Measured:
    """The slopes summed over a token's places: a prompt that is read twice has half its slope in each."""
    ids = [part for pair in pairs for part in (pair.prompt, pair.chosen, pair.rejected)]
    kinds_U = torch.from_numpy(np.unique(np.concatenate(ids)).astype(np.int64))
    weights_S = torch.linspace(1, 2, len(logps_S), device=logps_S.device)
    slopes = torch.autograd.grad((weights_S * logps_S).sum(), [embedded for _, embedded in seen])
    slope_TD = torch.cat([slope.flatten(0, -2) for slope in slopes]).double().cpu()
    which_T = torch.searchsorted(kinds_U, torch.cat([read.flatten() for read, _ in seen]).cpu())
    slope_UD = slope_TD.new_zeros(len(kinds_U), slope_TD.shape[-1]).index_add(0, which_T, slope_TD)
    return _Measured(logps_S.detach().double().cpu(), slope_UD)


@contextmanager
def _embeddings(model: PreTrainedModel) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What the embedding reads and gives while inside, its output made a leaf that a gradient can be asked of."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        seen.append((args[0], leaf))
        return leaf

    embedding: Any = model.get_input_embeddings()
    hook = embedding.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()
