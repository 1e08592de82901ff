"""Checks between the reference pass and the first step: is what will be trained what the user thinks?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dil_cli.dynamics.measure import Compute, forward_pairs, with_reference
from dil_cli.errors import RunFailed
from dil_cli.losses import PreferenceLoss
from dil_cli.types import PairLogps, TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLERANCE = {False: 1e-4, True: 2e-2}
"""Relative difference of two passes over one row, by bf16: padding changes the order of sums."""


def check_reference(
    model: PreTrainedModel,
    loss: PreferenceLoss,
    pairs: Sequence[TokenisedPair],
    reference: PairLogps,
    compute: Compute,
) -> float:
    """The policy must be the reference at step 0: same log-probs (`check_column`), and the loss's known value there.

    Args:
        pairs: a few training pairs.
        reference: their log-probs as the reference column has them.

    Returns:
        The loss on these pairs.

    Raises:
        RunFailed: when the policy has drifted from its reference before any step.
    """
    policy = check_column(model, pairs, reference, compute)
    with torch.no_grad():
        value = float(loss(with_reference(policy, reference)).loss_B.double().mean())
    tolerance = TOLERANCE[compute.bf16]
    expected = loss.at_reference()
    if expected is not None and not math.isclose(value, expected, rel_tol=50 * tolerance, abs_tol=50 * tolerance):
        raise RunFailed(
            f"{loss.name} is {value:.6f} where policy = reference, it must be {expected:.6f}",
            where="preflight",
        )
    return value


def check_column(
    model: PreTrainedModel, pairs: Sequence[TokenisedPair], column: PairLogps, compute: Compute
) -> PairLogps:
    """The log-probs of a few pairs now, which must be those of `column`, cached or computed before.

    Raises:
        RunFailed: when they differ by more than the order of sums explains.
    """
    with torch.no_grad():
        policy = forward_pairs(model, pairs, compute).map(lambda x_B: x_B.cpu())
    for side in ("chosen", "rejected"):
        now_B, then_B = (getattr(x, f"policy_{side}_B") for x in (policy, column))
        worst = relative_difference(now_B, then_B)
        if not worst <= TOLERANCE[compute.bf16]:
            raise RunFailed(
                f"the policy is not its reference before the first step ({side} log-probs differ by {worst:.1e})",
                where="preflight", fix="is dropout on? is the cached reference another's? dil cache verify tells",
            )  # fmt: skip
    return policy


def relative_difference(now_B: torch.Tensor, then_B: torch.Tensor) -> float:
    """The largest difference of two summed log-probs relative to the second, absolute where that is below a nat."""
    now_B, then_B = now_B.double(), then_B.double()
    return float(((now_B - then_B).abs() / then_B.abs().clamp(min=1.0)).max())


def show_pair(pair: TokenisedPair, tokenizer: PreTrainedTokenizerBase, width: int = 160) -> list[str]:
    """One pair decoded as the model sees it: the prompt's end, and the whole of what is scored."""
    parts = [("prompt", pair.prompt), ("chosen", pair.chosen), ("rejected", pair.rejected)]
    lines = []
    for name, ids in parts:
        if len(ids):
            text = repr(tokenizer.decode(ids.tolist()))[1:-1]
            if len(text) > width:
                text = "... " + text[-width:] if name == "prompt" else f"{text[: width // 2]} ... {text[-width // 2 :]}"
            note = f"{len(ids)} tokens, " + ("not scored" if name == "prompt" else "scored")
            lines.append(f"{name} ({note}): {text}")
    return lines
