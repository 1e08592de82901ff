"""Direct imitation learning (DIL): the policy is fitted as a density ratio to the reference.

The ratio is r = pi(y|x) / pi_ref(y|x), s = log r. Chosen responses are samples of the data, rejected ones
stand in for samples of pi_ref. A convex h gives the loss (Bregman divergence, up to a constant)

    L = h'(r_l) r_l - h(r_l) - h'(r_w),   dL/ds_w = -h''(r_w) r_w,   dL/ds_l = h''(r_l) r_l^2.

At policy = reference every loss here pulls the chosen response up and pushes the rejected one down with
equal weight. They part as s_l falls: how fast the push on the rejected response fades tells them apart.
The reduction `mean` is the official code's convention, `sum` gives the paper's formulas for whole responses.

Source: arXiv 2503.05079.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dil_cli.losses.common import (
    Reduction,
    beyond_cap,
    guarded_exp,
    log_ratios,
    require_exp_cap,
    softplus,
)
from dil_cli.losses.registry import register
from dil_cli.types import LossOutput, PairLogps


@register
@dataclass(kw_only=True)
class LSIF:
    """Least-squares importance fitting, h(r) = (r - 1)^2 / 2: -e^{s_w} + e^{2 s_l} / 2.

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per token
    (`mean`, the default) or per response (`sum`). exp_cap is the exponent above which e^{s_w} and e^{2 s_l}
    continue along their tangent; null turns the guard off. The paper's default.

    Gradient: dL/ds_w = -e^{s_w} and dL/ds_l = e^{2 s_l}. The pull on the chosen response grows with its own
    ratio; the push on the rejected one fades fastest of the three. Above the cap each keeps its value there.

    Source: arXiv 2503.05079, LSIF variant.
    """

    name: ClassVar[str] = "lsif"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    reduction: Reduction = Reduction.mean
    exp_cap: float | None = 30.0

    def __post_init__(self) -> None:
        require_exp_cap(self.exp_cap)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,), and where e^{s_w} or e^{2 s_l} was beyond its cap."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        loss_B = guarded_exp(2 * s_l_B, self.exp_cap) / 2 - guarded_exp(s_w_B, self.exp_cap)
        return LossOutput(loss_B, beyond_cap(self.exp_cap, s_w_B, 2 * s_l_B))

    def at_reference(self) -> float | None:
        """-1/2."""
        return -0.5


@register
@dataclass(kw_only=True)
class BCE:
    """Binary cross-entropy, h(r) = r log r - (1 + r) log(1 + r): softplus(-s_w) + softplus(s_l).

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per token
    (`mean`, the default) or per response (`sum`): the logit of a classifier of chosen against rejected.

    Gradient: dL/ds_w = -sigma(-s_w) and dL/ds_l = sigma(s_l). Both lie in 0 to 1 and fade once their own
    response is told apart, so nothing here can overflow.

    Source: arXiv 2503.05079, BCE variant.
    """

    name: ClassVar[str] = "bce"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    reduction: Reduction = Reduction.mean

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        return LossOutput(softplus(-s_w_B) + softplus(s_l_B))

    def at_reference(self) -> float | None:
        """2 log 2."""
        return 2 * math.log(2)


@register
@dataclass(kw_only=True)
class UKL:
    """Unnormalised Kullback-Leibler divergence, h(r) = r log r - r: -s_w + e^{s_l}.

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per token
    (`mean`, the default) or per response (`sum`). exp_cap is the exponent above which e^{s_l} continues along
    its tangent; null turns the guard off. The official code leaves the reference out of the first term:
    another value, the same gradient.

    Gradient: dL/ds_w = -1 and dL/ds_l = e^{s_l}. The pull on the chosen response is that of SFT; the push on
    the rejected one fades with its ratio. Above the cap it keeps its value there.

    Source: arXiv 2503.05079, UKL variant.
    """

    name: ClassVar[str] = "ukl"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

    reduction: Reduction = Reduction.mean
    exp_cap: float | None = 30.0

    def __post_init__(self) -> None:
        require_exp_cap(self.exp_cap)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,), and where e^{s_l} was beyond its cap."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        loss_B = guarded_exp(s_l_B, self.exp_cap) - s_w_B
        return LossOutput(loss_B, beyond_cap(self.exp_cap, s_l_B))

    def at_reference(self) -> float | None:
        """1."""
        return 1.0
