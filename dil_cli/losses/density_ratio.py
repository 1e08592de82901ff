"""DIL, direct imitation learning: the policy is fitted as a density ratio to the reference.

The ratio is r = pi(y|x) / pi_ref(y|x), s = log r. Chosen responses are samples of the data, rejected ones
stand in for samples of pi_ref. A convex h gives the loss (Bregman divergence, up to a constant)

    L = E_ref[h'(r) r - h(r)] - E_chosen[h'(r)].

`reference_samples=rejected` (the default) takes E_ref over the rejected response of a pair:

    L = h'(r_l) r_l - h(r_l) - h'(r_w),   dL/ds_w = -h''(r_w) r_w,   dL/ds_l = h''(r_l) r_l^2.

`reference_samples=both` lets the chosen response stand in for pi_ref too, each with weight 1/2:

    L = [h'(r_l) r_l - h(r_l) + h'(r_w) r_w - h(r_w)] / 2 - h'(r_w),
    dL/ds_w = -h''(r_w) r_w (1 - r_w / 2),   dL/ds_l = h''(r_l) r_l^2 / 2.

The value at policy = reference is the same. The pull on the chosen response ends at r_w = 2, for every h: the
ratio to a half-and-half mixture cannot be larger.

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
    ReferenceSamples,
    beyond_cap,
    guarded_exp,
    log_ratios,
    mean_over,
    policy_scores,
    reference_log_ratios,
    require_exp_cap,
    require_reduction,
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

    Ranges: none in the paper; nothing to tune but reduction and learning rate (3e-7, 5e-7, 6e-7, 1e-6 at 7B).

    Neighbours: power with alpha = 1, less 1/2; rulsif bounds its ratio; ukl and bce let the push fade slower.

    Source: arXiv 2503.05079, LSIF variant.
    """

    name: ClassVar[str] = "lsif"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    reduction: Reduction = Reduction.mean
    exp_cap: float | None = 30.0
    reference_samples: ReferenceSamples = ReferenceSamples.rejected

    def __post_init__(self) -> None:
        require_exp_cap(self.exp_cap)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,), and where e^{s_w} or e^{2 s_l} was beyond its cap."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        # Under `both` e^{s_w} and e^{2 s_w} / 2 leave their exact range together, or their difference would
        # change its sign above the cap and drive the ratio up without end.
        k = 1 if self.reference_samples == ReferenceSamples.rejected else 2
        pull_B = guarded_exp(s_w_B, self.exp_cap and self.exp_cap / k)
        samples = reference_log_ratios(s_w_B, s_l_B, self.reference_samples)
        push_B = mean_over([guarded_exp(2 * s_B, self.exp_cap) / 2 for s_B in samples])
        return LossOutput(push_B - pull_B, beyond_cap(self.exp_cap, k * s_w_B, 2 * s_l_B))

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

    Ranges: none in the paper; nothing to tune but reduction and learning rate (3e-7, 5e-7, 6e-7, 1e-6 at 7B).

    Neighbours: bco with beta = 1 and delta = 0, on means; dpo classifies the pair instead of each response; brier
    scores the same classifier by squares.

    Source: arXiv 2503.05079, BCE variant.
    """

    name: ClassVar[str] = "bce"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    reduction: Reduction = Reduction.mean
    reference_samples: ReferenceSamples = ReferenceSamples.rejected

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        samples = reference_log_ratios(s_w_B, s_l_B, self.reference_samples)
        return LossOutput(softplus(-s_w_B) + mean_over([softplus(s_B) for s_B in samples]))

    def at_reference(self) -> float | None:
        """2 log 2."""
        return 2 * math.log(2)


@register
@dataclass(kw_only=True)
class UKL:
    """Unnormalised Kullback-Leibler divergence, h(r) = r log r - r: -s_w + e^{s_l}.

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per token
    (`mean`, the default) or per response (`sum`). exp_cap is the exponent above which e^{s_l} continues along
    its tangent; null turns the guard off.

    Gradient: dL/ds_w = -1 and dL/ds_l = e^{s_l}. The pull on the chosen response is that of SFT; the push on
    the rejected one fades with its ratio. Above the cap it keeps its value there.

    Ranges: none in the paper; nothing to tune but reduction and learning rate (3e-7, 5e-7, 6e-7, 1e-6 at 7B).

    Neighbours: power with alpha = 0, plus 1; sft with a push on the rejected response; kliep divides the push by
    the batch's mean ratio; ukl_official has the same gradient and another value.

    Source: arXiv 2503.05079, UKL variant.
    """

    name: ClassVar[str] = "ukl"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    reduction: Reduction = Reduction.mean
    exp_cap: float | None = 30.0
    reference_samples: ReferenceSamples = ReferenceSamples.rejected

    def __post_init__(self) -> None:
        require_exp_cap(self.exp_cap)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,), and where e^{s_l} was beyond its cap."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        samples = reference_log_ratios(s_w_B, s_l_B, self.reference_samples)
        push_B = mean_over([guarded_exp(s_B, self.exp_cap) for s_B in samples])
        return LossOutput(push_B - s_w_B, beyond_cap(self.exp_cap, *samples))

    def at_reference(self) -> float | None:
        """1."""
        return 1.0


@register
@dataclass(kw_only=True)
class UKLOfficial:
    """The official code's UKL, its first term without the reference: -p_w + e^{s_l}.

    p_w is the policy's log-prob of the chosen response and s_l the log-ratio log pi/pi_ref of the rejected one,
    both in nats per token; the code averages them, and no other reduction is defined. exp_cap is the exponent
    above which e^{s_l} continues along its tangent; the code itself has no guard, as with null.

    Gradient: dL/ds_w = -1 and dL/ds_l = e^{s_l}, that of ukl. Only the value differs, by the reference's own
    log-prob of the chosen response, so it depends on the data where policy = reference.

    Ranges: learning rate 3e-7, 5e-7, 6e-7, 1e-6 at 7B in the paper.

    Neighbours: ukl, the same training with a value that is 1 at policy = reference.

    Source: the code of arXiv 2503.05079 (tengxiao1/DIL on GitHub).
    """

    name: ClassVar[str] = "ukl_official"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    reduction: Reduction = Reduction.mean
    exp_cap: float | None = 30.0
    reference_samples: ReferenceSamples = ReferenceSamples.rejected

    def __post_init__(self) -> None:
        require_reduction(self.name, self.reduction, Reduction.mean)
        require_exp_cap(self.exp_cap)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,), and where e^{s_l} was beyond its cap."""
        p_w_B, _ = policy_scores(pair, self.reduction)
        samples = reference_log_ratios(*log_ratios(pair, self.reduction), self.reference_samples)
        push_B = mean_over([guarded_exp(s_B, self.exp_cap) for s_B in samples])
        return LossOutput(push_B - p_w_B, beyond_cap(self.exp_cap, *samples))

    def at_reference(self) -> float | None:
        """None: the value depends on the log-probs themselves."""
        return None
