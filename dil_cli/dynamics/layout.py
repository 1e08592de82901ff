"""Which layout of rows a model takes: tried on a few pairs before training, against the plainest computation.

Some architectures ignore the attention they are given or place tokens their own way, and say nothing. So the fastest
layout is compared with single unpadded rows, log-probs and gradient, and one that differs gives way to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 3e-2}
"""Relative difference that counts as rounding, by the type of the weights. The check itself runs without autocast."""

WORDS = {
    Layout.shared: "packed rows, each prompt once",
    Layout.separate: "packed rows, each prompt twice",
    Layout.padded: "padded rows of similar length",
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
    """Log-probs of the responses (2B,), and the slope of a weighted sum of them in each token's embedding (U, D)."""

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
    pairs = _trial_pairs(model, max_length)
    exact = replace(compute, bf16=False, layout=Layout.padded)
    tolerance = TOLERANCE.get(model.dtype, TOLERANCE[torch.bfloat16])
    expected = _measure(model, pairs, exact, one_by_one=True)
    refused: list[tuple[Layout, str, str]] = []
    for layout, attention in _candidates(compute.device):
        try:
            model.set_attn_implementation(attention)
            distance = _measure(model, pairs, replace(exact, layout=layout)).distance(expected)
            reason = f"it differs by {distance:.0e}"
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
    """Why not a faster layout, each reason once."""
    first = {reason: f"{layout.value} by {attention}" for layout, attention, reason in reversed(refused)}
    return "".join(f"; not {what}: {reason}" for reason, what in reversed(first.items()))


def _candidates(device: torch.device) -> Iterator[tuple[Layout, str]]:
    for layout in (Layout.shared, Layout.separate):
        if device.type == "cuda":
            yield layout, FLEX
        yield layout, TILES


def _trial_pairs(model: PreTrainedModel, max_length: int) -> list[TokenisedPair]:
    """Random pairs; one prompt is longer than the sliding window, where rows can be."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    embedding: Any = model.get_input_embeddings()
    numbers = np.random.default_rng(0)
    pairs = []
    for row, (prompt, *responses) in enumerate(LENGTHS):
        if row == 0 and window is not None and window < max_length:
            prompt = min(window + 8, max_length)
        ids = [numbers.integers(0, embedding.weight.shape[0], n, dtype=np.int32) for n in (prompt, *responses)]
        pairs.append(TokenisedPair(row, *ids))
    return pairs


def _measure(
    model: PreTrainedModel, pairs: Sequence[TokenisedPair], compute: Compute, one_by_one: bool = False
) -> _Measured:
    """Log-probs and slopes of the pairs in one micro-batch, or each response in a row of its own."""
    ids = torch.from_numpy(np.unique(np.concatenate([part for p in pairs for part in (p.prompt, p.chosen, p.rejected)])))
    nothing = np.empty(0, dtype=np.int32)
    with _embeddings(model) as seen:
        if one_by_one:
            sides = [[replace(p, chosen=response, rejected=nothing) for p in pairs for response in [getattr(p, side)]]
                     for side in ("chosen", "rejected")]
            rows = [forward_pairs(model, [pair], compute).policy_chosen_B for side in sides for pair in side]
            logps_S = torch.cat(rows)
        else:
            logps = forward_pairs(model, pairs, compute)
            logps_S = torch.cat([logps.policy_chosen_B, logps.policy_rejected_B])
        weights_S = torch.linspace(1, 2, len(logps_S), device=logps_S.device)
        slopes = torch.autograd.grad((weights_S * logps_S).sum(), [leaf for _, leaf in seen])
    # Summed over a token's places: a prompt that is read twice has half its slope in each.
    slope_UD = torch.zeros(len(ids), slopes[0].shape[-1], dtype=torch.float64)
    for (read, _), slope in zip(seen, slopes, strict=True):
        places = torch.searchsorted(ids, read.flatten().cpu().to(ids.dtype)).clamp(max=len(ids) - 1)
        slope_UD.index_add_(0, places, slope.flatten(0, -2).double().cpu())
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
    hook: Callable[..., Any] = embedding.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()  # type: ignore[attr-defined]
