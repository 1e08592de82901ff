"""What the losses share: the reduction of log-probs, a guarded exponential, checks of hyper-parameters.

Shape suffix: B pairs. Log-probs and what is made of them are in nats: per response under `sum`,
per token under `mean`. Subscript w is the chosen response, l the rejected one.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from dil_cli.errors import DilError, require
from dil_cli.types import PairLogps

# Up to here float32 holds the square of e^cap, as a gradient norm forms it: e^80 = 5.5e34 of 3.4e38.
HIGHEST_EXP_CAP = 40.0


class Reduction(str, Enum):
    """How token log-probs become one number: their mean, or their sum over the response."""

    mean = "mean"
    sum = "sum"


class ReferenceSamples(str, Enum):
    """Which responses stand in for samples of pi_ref: with both, the pull is times 1 - r_w / 2 and the push halved."""

    rejected = "rejected"
    both = "both"


def at_least_float32(x_B: Tensor) -> Tensor:
    """`x_B` in float32, or as it is if it is float64: a loss in bfloat16 would have two digits."""
    return x_B.to(torch.promote_types(x_B.dtype, torch.float32))


def widest(x_B: Tensor) -> Tensor:
    """`x_B` in float64 where the device has it: e^500 fits, and nothing overflows on the way."""
    return x_B if x_B.device.type == "mps" else x_B.double()


def reduce_logps(summed_B: Tensor, tokens_B: Tensor, reduction: Reduction) -> Tensor:
    """Summed log-probs (B,) in float32 or better, divided by the token counts (B,) under `mean`.

    A missing response has a sum of 0 over 0 tokens. It counts as 1 token, so value and gradient stay finite.
    """
    exact_B = at_least_float32(summed_B)
    if reduction == Reduction.sum:
        return exact_B
    return exact_B / tokens_B.clamp(min=1)


def policy_scores(pair: PairLogps, reduction: Reduction) -> tuple[Tensor, Tensor]:
    """The policy's log-probs `(p_w_B, p_l_B)`, log pi(y|x) under `reduction`."""
    return (
        reduce_logps(pair.policy_chosen_B, pair.chosen_tokens_B, reduction),
        reduce_logps(pair.policy_rejected_B, pair.rejected_tokens_B, reduction),
    )


def log_ratios(pair: PairLogps, reduction: Reduction) -> tuple[Tensor, Tensor]:
    """The log-ratios `(s_w_B, s_l_B)`, s = log pi(y|x) - log pi_ref(y|x) under `reduction`.

    Raises:
        DilError: when the pairs carry no reference log-probs.
    """
    if pair.reference_chosen_B is None or pair.reference_rejected_B is None:
        raise DilError(
            "the loss uses reference log-probs and these pairs have none",
            where="needs_reference in the loss's class",
            fix="needs_reference: ClassVar[bool] = True",
        )
    # The difference is taken in float32 or better, before the division: both sums are large, s is small.
    s_w_B = at_least_float32(pair.policy_chosen_B) - at_least_float32(pair.reference_chosen_B)
    s_l_B = at_least_float32(pair.policy_rejected_B) - at_least_float32(pair.reference_rejected_B)
    return (
        reduce_logps(s_w_B, pair.chosen_tokens_B, reduction),
        reduce_logps(s_l_B, pair.rejected_tokens_B, reduction),
    )


def softplus(x_B: Tensor) -> Tensor:
    """log(1 + e^x), exact and with gradient sigma(x) at every x.

    `torch.nn.functional.softplus` is x itself above 20, which is off by 2e-9 in the gradient there.
    """
    return -functional.logsigmoid(-x_B)


def sigmoid(x_B: Tensor) -> Tensor:
    """1 / (1 + e^-x), with its slope sigma(x) sigma(-x) exact also where sigma(x) is close to 1.

    `torch.sigmoid` takes the slope as y (1 - y), which has no digits left there in float32.
    """
    return functional.logsigmoid(x_B).exp()


class _Expm1(torch.autograd.Function):
    """e^x - 1 with the slope e^x; torch takes the slope as value + 1, which has few digits where e^x is small."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_B: Tensor) -> Tensor:
        ctx.save_for_backward(x_B)
        return x_B.expm1()

    @staticmethod
    def backward(ctx: FunctionCtx, slope_B: Tensor) -> Tensor:
        (x_B,) = ctx.saved_tensors  # type: ignore[attr-defined]
        exp_B: Tensor = x_B.exp()
        return slope_B * exp_B


def expm1(x_B: Tensor) -> Tensor:
    """e^x - 1, exact near 0 and in its slope."""
    value_B: Tensor = _Expm1.apply(x_B)  # type: ignore[no-untyped-call]
    return value_B


def guarded_exp(x_B: Tensor, cap: float | None) -> Tensor:
    """e^x up to `cap`, above it the tangent e^cap (1 + x - cap); e^x everywhere when `cap` is None.

    Value and slope are continuous; above the cap the slope stays e^cap, it neither vanishes nor overflows.
    """
    if cap is None:
        return x_B.exp()
    # A product, not torch.where: no branch here overflows, so none can put inf * 0 = NaN into the gradient.
    return x_B.clamp(max=cap).exp() * (1 + functional.relu(x_B - cap))


def guarded_expm1(x_B: Tensor, cap: float | None) -> Tensor:
    """`guarded_exp(x) - 1`, exact near x = 0 where that difference would lose its digits."""
    if cap is None:
        return expm1(x_B)
    below_B = x_B.clamp(max=cap)
    return expm1(below_B) + below_B.exp() * functional.relu(x_B - cap)


def box_cox(s_B: Tensor, k: float, cap: float | None) -> Tensor:
    """(r^k - 1) / k of r = e^s, which is s at k = 0; slope e^{k s}, the exponent k s is guarded."""
    return guarded_expm1(k * s_B, cap) / k if k else s_B


def reference_log_ratios(s_w_B: Tensor, s_l_B: Tensor, samples: ReferenceSamples) -> list[Tensor]:
    """The log-ratios (B,) of the responses that stand in for samples of pi_ref: s_l, or s_w and s_l."""
    return [s_l_B] if samples == ReferenceSamples.rejected else [s_w_B, s_l_B]


def mean_over(terms_B: Sequence[Tensor]) -> Tensor:
    """The mean (B,) of some tensors (B,)."""
    return torch.stack(list(terms_B)).mean(dim=0)


def beyond_cap(cap: float | None, *exponents_B: Tensor) -> Tensor | None:
    """Where any of the exponents is above `cap`, (B,) bool; None when the guard is off.

    This is what a loss reports as `LossOutput.guarded_B`.
    """
    if cap is None:
        return None
    return torch.stack([x_B.detach() > cap for x_B in exponents_B]).any(dim=0)


def require_exp_cap(cap: float | None) -> None:
    """`loss.exp_cap` must lie above 0, so that s = 0 is exact, and at most at 40, or be null."""
    require(
        cap is None or 0 < cap <= HIGHEST_EXP_CAP, "loss.exp_cap", cap,
        f"be above 0 and at most {HIGHEST_EXP_CAP:g}, or null", 30,
    )  # fmt: skip


def require_epsilon(epsilon: float) -> None:
    """`loss.epsilon`, the share of labels taken to be flipped, must lie in 0 to 1/2, without 1/2."""
    require(0 <= epsilon < 0.5, "loss.epsilon", epsilon, "be 0 or more and below 0.5", 0.1)


def require_reduction(name: str, reduction: Reduction, only: Reduction) -> None:
    """The loss `name` exists under one reduction; the other one is refused."""
    if reduction != only:
        raise DilError(
            f"loss.reduction is {reduction.value}, {name} is defined for {only.value} only",
            where="loss.reduction",
            fix=f"loss.reduction={only.value}",
        )
