"""DPO, logistic losses: softplus of the difference of the two log-ratios, and what was put into it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from torch import Tensor

from dil_cli.errors import require, require_not_negative, require_positive
from dil_cli.losses.common import (
    Reduction,
    beyond_cap,
    box_cox,
    log_ratios,
    require_epsilon,
    require_exp_cap,
    require_reduction,
    softplus,
    widest,
)
from dil_cli.losses.registry import register
from dil_cli.types import LossOutput, PairLogps


@register
@dataclass(kw_only=True)
class DPO:
    """Logistic loss on the difference of log-ratios: softplus(-beta (s_w - s_l)).

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per response
    (`sum`, the default) or per token (`mean`); beta > 0 has the inverse unit.

    Gradient: dL/ds_w = -beta sigma(-z) and dL/ds_l = +beta sigma(-z), z = beta (s_w - s_l). The two weights
    are equal for ever, so a pair is solved as well by sinking both responses, the rejected one further.

    Ranges: beta 0.01, 0.05, 0.1 in SimPO's comparison; 0.1, and 0.5 on TL;DR, in the paper.

    Neighbours: DIL with CPC is dpo with beta = 1; cdpo, robust_dpo, fdpo, rdpo and dpop change its argument or its
    labels, ipo, rso and exo put another function on the same difference.

    Source: arXiv 2305.18290, eq. 7. With beta = 1 it is the CPC member of DIL (arXiv 2503.05079).
    """

    name: ClassVar[str] = "dpo"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 0.1
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.1)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        return LossOutput(softplus(-self.beta * (s_w_B - s_l_B)))

    def at_reference(self) -> float | None:
        """Log 2, whatever beta is."""
        return math.log(2)


@register
@dataclass(kw_only=True)
class ConservativeDPO:
    """DPO for labels of which a share epsilon is flipped: (1 - epsilon) softplus(-z) + epsilon softplus(z).

    z = beta (s_w - s_l); s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats
    per response (`sum`, the default) or per token (`mean`); beta > 0 has the inverse unit. epsilon lies in 0 to 1/2.

    Gradient: dL/ds_w = -beta (1 - epsilon - sigma(z)) and dL/ds_l the same with the other sign. It vanishes at
    sigma(z) = 1 - epsilon and turns round beyond, so the margin has a target.

    Ranges: epsilon is the share of flipped labels, 0.1 where nothing is known; beta as dpo.

    Neighbours: dpo at epsilon = 0; robust_dpo corrects the bias of flipped labels where this one softens them. TRL's
    sigmoid ignores its label_smoothing, so TRL has no cdpo.

    Source: E. Mitchell, A note on DPO with noisy preferences and relationship to IPO, 2023.
    """

    name: ClassVar[str] = "cdpo"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 0.1
    epsilon: float = 0.1
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.1)
        require_epsilon(self.epsilon)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        z_B = self.beta * (s_w_B - s_l_B)
        return LossOutput((1 - self.epsilon) * softplus(-z_B) + self.epsilon * softplus(z_B))

    def at_reference(self) -> float | None:
        """Log 2."""
        return math.log(2)


@register
@dataclass(kw_only=True)
class RobustDPO:
    """DPO unbiased under label flips: ((1 - epsilon) softplus(-z) - epsilon softplus(z)) / (1 - 2 epsilon).

    z = beta (s_w - s_l); s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats
    per response (`sum`, the default) or per token (`mean`); beta > 0 has the inverse unit. epsilon, in 0 to 1/2, is
    the share of flipped labels; the mean over such labels is the loss dpo would have on the true ones.

    Gradient: dL/ds_w = -beta ((1 - epsilon) sigma(-z) + epsilon sigma(z)) / (1 - 2 epsilon) and dL/ds_l the same with
    the other sign. It never fades below beta epsilon / (1 - 2 epsilon), and the loss has no lower bound.

    Ranges: epsilon is the share of flipped labels; beta as dpo.

    Neighbours: dpo at epsilon = 0; cdpo is biased and bounded where this one is unbiased and unbounded.

    Source: arXiv 2403.00409.
    """

    name: ClassVar[str] = "robust_dpo"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 0.1
    epsilon: float = 0.1
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.1)
        require_epsilon(self.epsilon)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        z_B = self.beta * (s_w_B - s_l_B)
        biased_B = (1 - self.epsilon) * softplus(-z_B) - self.epsilon * softplus(z_B)
        return LossOutput(biased_B / (1 - 2 * self.epsilon))

    def at_reference(self) -> float | None:
        """Log 2."""
        return math.log(2)


class Divergence(str, Enum):
    """What holds the policy at its reference; dpo has reverse_kl."""

    reverse_kl = "reverse_kl"
    forward_kl = "forward_kl"
    js = "js"
    alpha = "alpha"


@register
@dataclass(kw_only=True)
class FDPO:
    """DPO under another divergence D_f: softplus(-beta (f'(s_w) - f'(s_l))).

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per response
    (`sum`, the default) or per token (`mean`). f' by divergence, up to a constant: reverse_kl s; forward_kl -e^{-s};
    js log 2 - softplus(-s); alpha (1 - e^{-alpha s}) / alpha, with alpha between 0 and 1, which must be null for the
    others. beta > 0 scales f'. exp_cap is the exponent above which e^{-s} (forward_kl) and e^{-alpha s} (alpha)
    continue along their tangent; null turns the guard off.

    Gradient: dL/ds_w = -beta f''(s_w) sigma(-z) and dL/ds_l = +beta f''(s_l) sigma(-z), z the argument and f'' = 1,
    e^{-s}, sigma(-s), e^{-alpha s}. But for reverse_kl, a response that has sunk is moved more than one that has
    risen, so a falling chosen response is pulled back harder, and the rejected one pushed on.

    Ranges: alpha 0.3, 0.5, 0.7 in the paper; beta as dpo.

    Neighbours: dpo is reverse_kl, the limit alpha = 0; forward_kl is the limit alpha = 1. TRL's alpha is 1 - alpha.

    Source: f-DPO, arXiv 2309.16240.
    """

    name: ClassVar[str] = "fdpo"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    divergence: Divergence = Divergence.js
    beta: float = 0.1
    alpha: float | None = None
    reduction: Reduction = Reduction.sum
    exp_cap: float | None = 30.0

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.1)
        require_exp_cap(self.exp_cap)
        if self.divergence == Divergence.alpha:
            holds = self.alpha is not None and 0 < self.alpha < 1
            require(holds, "loss.alpha", self.alpha, "lie between 0 and 1 with loss.divergence=alpha", 0.5)
        else:
            require(self.alpha is None, "loss.alpha", self.alpha, "stay null unless loss.divergence=alpha", "null")

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats, and where an exponential was beyond its cap."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        dtype = s_w_B.dtype
        if self.exp_cap is None:  # sigma(-z) e^{-s} is small where e^{-s} alone is infinite
            s_w_B, s_l_B = widest(s_w_B), widest(s_l_B)
        loss_B = softplus(-self.beta * (self._slope(s_w_B) - self._slope(s_l_B))).to(dtype)
        power = {Divergence.forward_kl: 1.0, Divergence.alpha: self.alpha}.get(self.divergence)
        if power is None:
            return LossOutput(loss_B)
        return LossOutput(loss_B, beyond_cap(self.exp_cap, -power * s_w_B, -power * s_l_B))

    def _slope(self, s_B: Tensor) -> Tensor:
        """f' at e^s, up to a constant that the difference cancels."""
        if self.divergence == Divergence.reverse_kl:
            return s_B
        if self.divergence == Divergence.js:
            return -softplus(-s_B)
        return box_cox(s_B, -(self.alpha or 1.0), self.exp_cap)

    def at_reference(self) -> float | None:
        """Log 2."""
        return math.log(2)


@register
@dataclass(kw_only=True)
class RDPO:
    """DPO with a length term: softplus(-(beta (s_w - s_l) + sign alpha (n_w - n_l))).

    s_w, s_l are the log-ratios log pi/pi_ref and n_w, n_l the token counts of the chosen and the rejected response;
    the loss is defined on sums only, in nats per response. beta > 0 has the inverse unit, alpha >= 0 is per token.
    sign = 1 follows from a reward less alpha per token: a longer chosen response counts as won and is pulled less.
    sign = -1 is how SimPO's comparison prints it.

    Gradient: dL/ds_w = -beta sigma(-z) and dL/ds_l = +beta sigma(-z), z the argument of dpo plus the length term.
    Lengths move the weight of a pair, not the balance within it.

    Ranges: alpha 0.05, 0.1, 0.5, 1 and beta 0.01, 0.05, 0.1 in SimPO's comparison.

    Neighbours: dpo at alpha = 0; simpo and every loss under `mean` divide by the length instead.

    Source: arXiv 2403.19159.
    """

    name: ClassVar[str] = "rdpo"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 0.1
    alpha: float = 0.05
    sign: int = 1
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.1)
        require_not_negative("loss.alpha", self.alpha, 0.05)
        require(self.sign in (1, -1), "loss.sign", self.sign, "be 1 or -1", 1)
        require_reduction(self.name, self.reduction, Reduction.sum)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        # In the type of s: a whole number times 0.05 would be float32 whatever s is.
        longer_B = (pair.chosen_tokens_B - pair.rejected_tokens_B).to(s_w_B)
        return LossOutput(softplus(-(self.beta * (s_w_B - s_l_B) + self.sign * self.alpha * longer_B)))

    def at_reference(self) -> float | None:
        """None: the value depends on the lengths."""
        return None


@register
@dataclass(kw_only=True)
class DPOP:
    """DPO-positive: softplus(-beta (s_w - s_l - lam max(0, -s_w))).

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per response
    (`sum`, the default) or per token (`mean`); beta > 0 has the inverse unit, lam >= 0 has none (lambda in the
    paper). The penalty counts only where the chosen response has become less likely than under the reference.

    Gradient: with g = beta sigma(-z), z the argument: dL/ds_l = g, dL/ds_w = -g where s_w >= 0 and -(1 + lam) g
    below. A chosen response that sinks is pulled back lam times harder than the rejected one is pushed.

    Ranges: lam 5, 50, 500 and beta 0.3 in the paper.

    Neighbours: dpo at lam = 0 or while s_w stays above 0.

    Source: Smaug, arXiv 2402.13228.
    """

    name: ClassVar[str] = "dpop"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 0.3
    lam: float = 50.0
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.3)
        require_not_negative("loss.lam", self.lam, 50.0)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        return LossOutput(softplus(-self.beta * (s_w_B - s_l_B - self.lam * (-s_w_B).relu())))

    def at_reference(self) -> float | None:
        """Log 2."""
        return math.log(2)
