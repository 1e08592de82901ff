"""Numbers about a batch of pairs: likelihoods, log-ratios, margin, and how far they moved since step 0.

B pairs. s = policy - reference log-prob of a response, under the loss's reduction (sum over its
tokens or mean per token). All log-probs are natural logarithms, all arithmetic is float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from dil_cli.types import PairLogps

Float64: TypeAlias = NDArray[np.float64]

MIN_MARGIN_GAIN = 0.01
"""Nats per token the margin must have grown before `chosen_cost` is a number and not a division by noise."""

RATIO_EXPONENT = 80.0
"""`ratio/*` shows e^min(s, 80): it stays finite, and nobody needs the exact value of a larger one."""

ROUNDING = 2e-6
"""Part of a log-prob that the order of a float32 sum may change; a margin within it is a tie for `accuracy`."""

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}


def pair_statistics(logps: PairLogps, reduction: str, start: PairLogps | None = None) -> dict[str, float]:
    """Every metric that log-probs alone determine, named as in the record and without a prefix.

    Args:
        logps: B pairs, B > 0. Reference metrics need its reference fields, rejected ones rejected tokens.
        reduction: "mean" or "sum" over tokens, for the log-ratios and the margin.
        start: the same pairs in the same order, measured at step 0; adds the changes since then.

    Returns:
        Metric name to value; a metric that the input cannot give is absent.
    """
    values = _likelihoods(logps)
    values |= _against_reference(logps, reduction)
    if start is not None:
        values |= _since_start(logps, start)
    return values


def per_pair_change(logps: PairLogps, start: PairLogps) -> dict[str, Float64]:
    """Change of each pair's log-prob per token since `start`: chosen, rejected and margin, (B,) each.

    Demonstrations have no rejected response; their answer holds `chosen` only.

    Raises:
        ValueError: when the two do not measure the same number of pairs.
    """
    if logps.policy_chosen_B.shape != start.policy_chosen_B.shape:
        raise ValueError(f"{len(logps.policy_chosen_B)} pairs now, {len(start.policy_chosen_B)} at step 0")
    chosen_B = _per_token(logps.policy_chosen_B, logps.chosen_tokens_B) - _per_token(
        start.policy_chosen_B, start.chosen_tokens_B
    )
    if not has_rejected(logps):
        return {"chosen": chosen_B}
    rejected_B = _per_token(logps.policy_rejected_B, logps.rejected_tokens_B) - _per_token(
        start.policy_rejected_B, start.rejected_tokens_B
    )
    return {"chosen": chosen_B, "rejected": rejected_B, "margin": chosen_B - rejected_B}


def has_rejected(logps: PairLogps) -> bool:
    """Whether every pair has a rejected response (demonstrations have none)."""
    return bool((logps.rejected_tokens_B > 0).all())


def wins(margin_B: Float64, within_B: Float64 | float = 0.0) -> Float64:
    """1 for a margin above 0, 0.5 for a tie, (B,); at step 0 all are ties, whatever their last bits say."""
    return np.where(np.abs(margin_B) <= within_B, 0.5, margin_B > 0)


def size(logps: PairLogps, reduction: str) -> Float64:
    """|log-prob| of the chosen and the rejected response together, under the reduction, (B,)."""
    sides = ((logps.policy_chosen_B, logps.chosen_tokens_B), (logps.policy_rejected_B, logps.rejected_tokens_B))
    sizes = [np.abs(array(sum_B) / (array(tokens_B) if reduction == "mean" else 1)) for sum_B, tokens_B in sides]
    return sizes[0] + sizes[1]


def array(x_B: Tensor) -> Float64:
    """A tensor as a float64 array on the CPU."""
    values: Float64 = x_B.detach().double().cpu().numpy()
    return values


def _per_token(sum_B: Tensor, tokens_B: Tensor) -> Float64:
    return array(sum_B) / array(tokens_B)


def _likelihoods(logps: PairLogps) -> dict[str, float]:
    sides = {"chosen": (logps.policy_chosen_B, logps.chosen_tokens_B)}
    if has_rejected(logps):
        sides["rejected"] = (logps.policy_rejected_B, logps.rejected_tokens_B)
    values = {}
    for side, (sum_B, tokens_B) in sides.items():
        values[f"logps/{side}"] = float(_per_token(sum_B, tokens_B).mean())
        values[f"logps_sum/{side}"] = float(array(sum_B).mean())
    return values


def _against_reference(logps: PairLogps, reduction: str) -> dict[str, float]:
    if logps.reference_chosen_B is None:
        return {}
    total_B = {"chosen": array(logps.policy_chosen_B) - array(logps.reference_chosen_B)}
    tokens_B = {"chosen": array(logps.chosen_tokens_B)}
    if logps.reference_rejected_B is not None and has_rejected(logps):
        total_B["rejected"] = array(logps.policy_rejected_B) - array(logps.reference_rejected_B)
        tokens_B["rejected"] = array(logps.rejected_tokens_B)
    mean_B = {side: total_B[side] / tokens_B[side] for side in total_B}
    s_B = {"mean": mean_B, "sum": total_B}[reduction]

    values = {}
    for side in s_B:
        values[f"logratio/{side}"] = float(s_B[side].mean())
        values[f"ratio/{side}"] = float(np.exp(np.minimum(s_B[side], RATIO_EXPONENT)).mean())
    if "rejected" in s_B:
        margin_B = s_B["chosen"] - s_B["rejected"]
        values["margin"] = float(margin_B.mean())
        values["accuracy"] = float(wins(margin_B, ROUNDING * size(logps, reduction)).mean())
        # Whatever the reduction, so that losses of different reductions compare.
        margin_mean_B = mean_B["chosen"] - mean_B["rejected"]
        values["margin_mean"] = float(margin_mean_B.mean())
        values["accuracy_mean"] = float(wins(margin_mean_B, ROUNDING * size(logps, "mean")).mean())
    return values


def _since_start(logps: PairLogps, start: PairLogps) -> dict[str, float]:
    change_B = per_pair_change(logps, start)
    values = {}
    for name, x_B in change_B.items():
        values[f"delta/{name}"] = float(x_B.mean())
        for label, q in QUANTILES.items():
            values[f"delta/{name}/{label}"] = float(np.quantile(x_B, q))
    if "rejected" in change_B:
        values["both_falling"] = float(((change_B["chosen"] < 0) & (change_B["rejected"] < 0)).mean())
        if values["delta/margin"] >= MIN_MARGIN_GAIN:
            values["chosen_cost"] = -values["delta/chosen"] / values["delta/margin"]
    return values
