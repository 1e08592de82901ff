"""Bregman, the wider DIL family: other convex functions h, and what bounds or normalises the ratio.

r = pi(y|x) / pi_ref(y|x), s = log r. Loss, gradient and `reference_samples=both` follow from h as in
`density_ratio.py`; constants are dropped where they make a formula longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from dil_cli.errors import require
from dil_cli.losses.common import (
    Reduction,
    ReferenceSamples,
    beyond_cap,
    box_cox,
    log_ratios,
    mean_over,
    reference_log_ratios,
    require_exp_cap,
    sigmoid,
)
from dil_cli.losses.registry import register
from dil_cli.types import LossOutput, PairLogps


@register
@dataclass(kw_only=True)
class Power:
    """Power divergence, h''(r) = r^{alpha - 1}: (r_l^{1 + alpha} - 1) / (1 + alpha) - (r_w^alpha - 1) / alpha.

    r = e^s is the ratio pi/pi_ref of the chosen (w) and the rejected (l) response, s in nats per token (`mean`,
    the default) or per response (`sum`). alpha is any finite number; a term whose exponent is 0 is s. exp_cap is
    the exponent above which e^{alpha s_w} and e^{(1 + alpha) s_l} continue along their tangent; null turns it off.

    Gradient: dL/ds_w = -e^{alpha s_w} and dL/ds_l = e^{(1 + alpha) s_l}. A larger alpha lets the push on the
    rejected response fade faster; below 0 the pull on the chosen response fades as it rises, below -1 the push
    grows as the rejected one falls.

    Ranges: alpha 1 (lsif), 0 (ukl), -1/2 (Hellinger, times 2), -1 (Itakura-Saito) are the named members.

    Neighbours: lsif + 1/2 at alpha = 1, ukl - 1 at 0; jeffreys is the sum of alpha = 0 and alpha = -1.

    Source: arXiv 2503.05079 for the framework; Sugiyama et al., Density-ratio matching under the Bregman
    divergence, 2012, for the family.
    """

    name: ClassVar[str] = "power"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    alpha: float = 0.5
    reduction: Reduction = Reduction.mean
    exp_cap: float | None = 30.0
    reference_samples: ReferenceSamples = ReferenceSamples.rejected

    def __post_init__(self) -> None:
        require(math.isfinite(self.alpha), "loss.alpha", self.alpha, "be a finite number", 0.5)
        require_exp_cap(self.exp_cap)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,), and where an exponential was beyond its cap."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        samples = reference_log_ratios(s_w_B, s_l_B, self.reference_samples)
        cap_w = self.exp_cap
        if cap_w and self.alpha > 0 and self.reference_samples == ReferenceSamples.both:
            # As in LSIF: both terms of the chosen response leave their exact range at the same s_w.
            cap_w *= self.alpha / (1 + self.alpha)
        push_B = mean_over([box_cox(s_B, 1 + self.alpha, self.exp_cap) for s_B in samples])
        exponents = [self.alpha * s_w_B, *((1 + self.alpha) * s_B for s_B in samples)]
        return LossOutput(push_B - box_cox(s_w_B, self.alpha, cap_w), beyond_cap(self.exp_cap, *exponents))

    def at_reference(self) -> float | None:
        """0."""
        return 0.0


@register
@dataclass(kw_only=True)
class Jeffreys:
    """Jeffreys divergence, h(r) = (r - 1) log r: s_l + e^{s_l} - s_w + e^{-s_w} - 2.

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per token
    (`mean`, the default) or per response (`sum`). exp_cap is the exponent above which e^{s_l} and e^{-s_w}
    continue along their tangent; null turns the guard off.

    Gradient: dL/ds_w = -(1 + e^{-s_w}) and dL/ds_l = 1 + e^{s_l}. A chosen response that has sunk is pulled up
    exponentially, as no other member does; the push on the rejected one never fades below 1.

    Ranges: none.

    Neighbours: power at alpha = 0 plus power at alpha = -1, so ukl with a barrier below the chosen response.

    Source: arXiv 2503.05079 for the framework; the symmetric divergence of Jeffreys, 1946, as h.
    """

    name: ClassVar[str] = "jeffreys"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    reduction: Reduction = Reduction.mean
    exp_cap: float | None = 30.0
    reference_samples: ReferenceSamples = ReferenceSamples.rejected

    def __post_init__(self) -> None:
        require_exp_cap(self.exp_cap)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,), and where e^{s_l} or e^{-s_w} was beyond its cap."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        samples = reference_log_ratios(s_w_B, s_l_B, self.reference_samples)
        push_B = mean_over([s_B + box_cox(s_B, 1, self.exp_cap) for s_B in samples])
        pull_B = s_w_B + box_cox(s_w_B, -1, self.exp_cap)
        return LossOutput(push_B - pull_B, beyond_cap(self.exp_cap, -s_w_B, *samples))

    def at_reference(self) -> float | None:
        """0."""
        return 0.0


@register
@dataclass(kw_only=True)
class Brier:
    """Brier score, h(r) = -r / (1 + r): sigma(-s_w)^2 + sigma(s_l)^2.

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per token
    (`mean`, the default) or per response (`sum`): the logit of a classifier of chosen against rejected, which is
    scored by squares. Both terms lie in 0 to 1.

    Gradient: dL/ds_w = -2 sigma(-s_w)^2 sigma(s_w) and dL/ds_l = 2 sigma(s_l)^2 sigma(-s_l), at most 8/27 each.
    A pair that is far off on the wrong side is let go, which makes the loss robust to flipped labels.

    Ranges: none.

    Neighbours: bce scores the same classifier by logarithms and never lets a pair go; apo_zero without the square.

    Source: arXiv 2503.05079 for the framework; Menon and Ong, Linking losses for density ratio and
    class-probability estimation, 2016, for the score.
    """

    name: ClassVar[str] = "brier"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    reduction: Reduction = Reduction.mean
    reference_samples: ReferenceSamples = ReferenceSamples.rejected

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,)."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        samples = reference_log_ratios(s_w_B, s_l_B, self.reference_samples)
        return LossOutput(sigmoid(-s_w_B).square() + mean_over([sigmoid(s_B).square() for s_B in samples]))

    def at_reference(self) -> float | None:
        """1/2."""
        return 0.5


@register
@dataclass(kw_only=True)
class RuLSIF:
    """Relative least squares, rho = 1 / (alpha + (1 - alpha) / r): (alpha rho_w^2 + (1 - alpha) rho_l^2) / 2 - rho_w.

    rho is the ratio of pi to the mixture alpha pi + (1 - alpha) pi_ref, bounded by 1/alpha; r = e^s is the ratio
    pi/pi_ref of the chosen (w) and the rejected (l) response, s in nats per token (`mean`, the default) or per
    response (`sum`). alpha lies between 0 and 1.

    Gradient: with d = rho (1 - alpha rho), which is d rho / ds, dL/ds_w = -(1 - alpha rho_w) d_w and
    dL/ds_l = (1 - alpha) rho_l d_l. Both vanish for large ratios, so nothing can overflow and no guard is needed.

    Ranges: alpha 0.5 and 0.95 in density-ratio estimation; the smaller, the closer to lsif.

    Neighbours: lsif is alpha = 0, where the bound is gone.

    Source: Yamada et al., Relative density-ratio estimation, arXiv 1106.4729; arXiv 2503.05079 for the framework.
    """

    name: ClassVar[str] = "rulsif"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    alpha: float = 0.1
    reduction: Reduction = Reduction.mean
    reference_samples: ReferenceSamples = ReferenceSamples.rejected

    def __post_init__(self) -> None:
        require(0 < self.alpha < 1, "loss.alpha", self.alpha, "lie between 0 and 1 (0 is loss=lsif)", 0.1)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,)."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        samples = reference_log_ratios(s_w_B, s_l_B, self.reference_samples)
        rho_w_B = self._rho(s_w_B)
        mixture_B = mean_over([self._rho(s_B).square() for s_B in samples])
        return LossOutput((self.alpha * rho_w_B.square() + (1 - self.alpha) * mixture_B) / 2 - rho_w_B)

    def _rho(self, s_B: torch.Tensor) -> torch.Tensor:
        # alpha rho is a sigmoid of s: the same value as the definition's, without an e^{-s} that overflows.
        return sigmoid(s_B + math.log(self.alpha / (1 - self.alpha))) / self.alpha

    def at_reference(self) -> float | None:
        """-1/2."""
        return -0.5


@register
@dataclass(kw_only=True)
class KLIEP:
    """Kullback-Leibler importance estimation, normalised over the batch: -s_w + log mean e^{s_l}.

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per token
    (`mean`, the default) or per response (`sum`). The mean of e^{s_l} runs over all pairs of the optimiser batch, of
    e^s over all 2n responses with reference_samples=both; gradient flows through it. It is the same for each pair.

    Gradient: of the sum over the batch, dL/ds_w = -1 and dL/ds_l = e^{s_l} / mean e^{s_l}. The pushes of a batch
    always add up to its pulls; they go to the rejected responses whose ratio is large compared with the others'.

    Ranges: none.

    Neighbours: ukl has the push e^{s_l} without the division, so there the pushes fade as the batch's ratios do.

    Source: Sugiyama et al., Direct importance estimation for covariate shift adaptation, 2008; arXiv 2503.05079
    for the framework.
    """

    name: ClassVar[str] = "kliep"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = True

    reduction: Reduction = Reduction.mean
    reference_samples: ReferenceSamples = ReferenceSamples.rejected

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        samples = torch.cat(reference_log_ratios(s_w_B, s_l_B, self.reference_samples))
        return LossOutput(samples.logsumexp(dim=0) - math.log(len(samples)) - s_w_B)

    def at_reference(self) -> float | None:
        """0."""
        return 0.0
