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
    """The policy must be the reference at step 0: same log-probs, and the loss's known value there.

    Args:
        pairs: a few training pairs.
        reference: their log-probs as the reference column has them.

    Returns:
        The loss on these pairs.

    Raises:
        RunFailed: when the policy has drifted from its reference before any step.
    """
    with torch.no_grad():
        policy = forward_pairs(model, pairs, compute).map(lambda x_B: x_B.cpu())
        value = float(loss(with_reference(policy, reference)).loss_B.double().mean())
    tolerance = TOLERANCE[compute.bf16]
    for side in ("chosen", "rejected"):
        now_B, then_B = (getattr(x, f"policy_{side}_B").double() for x in (policy, reference))
        worst = float(((now_B - then_B).abs() / then_B.abs().clamp(min=1.0)).max())
        if not worst <= tolerance:
            raise RunFailed(
                f"the policy is not its reference before the first step ({side} log-probs differ by {worst:.1e})",
                where="preflight", fix="is dropout on, or the reference column from another model?",
            )  # fmt: skip
    expected = loss.at_reference()
    if expected is not None and not math.isclose(value, expected, rel_tol=50 * tolerance, abs_tol=50 * tolerance):
        raise RunFailed(
            f"{loss.name} is {value:.6f} where policy = reference, it must be {expected:.6f}",
            where="preflight",
        )
    return value


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
