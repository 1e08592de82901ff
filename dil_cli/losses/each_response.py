"""Absolute, a target for each response: the chosen and the rejected one are judged by their own log-ratios."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dil_cli.errors import require, require_not_negative, require_positive
from dil_cli.losses.common import Reduction, log_ratios, sigmoid, softplus
from dil_cli.losses.registry import register
from dil_cli.types import LossOutput, PairLogps


@register
@dataclass(kw_only=True)
class NCA:
    """Noise contrastive alignment of a pair: softplus(-r_w) + softplus(r_w) / 2 + softplus(r_l) / 2.

    r_w = beta s_w, r_l = beta s_l; s is the log-ratio log pi/pi_ref of the chosen (w) and the rejected (l) response,
    in nats per response (`sum`, the default) or per token (`mean`); beta > 0 has the inverse unit.

    Gradient: dL/ds_w = -beta (1 - 3/2 sigma(r_w)) and dL/ds_l = beta/2 sigma(r_l). The chosen response is drawn to
    r_w = log 2 and held there from both sides, so it cannot sink with the rejected one.

    Ranges: beta 0.01 in the paper; 0.1 in TRL.

    Neighbours: bce and bco lack the middle term and let the chosen response rise for ever.

    Source: arXiv 2402.05369, with two responses.
    """

    name: ClassVar[str] = "nca"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 0.01
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.01)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        r_w_B, r_l_B = self.beta * s_w_B, self.beta * s_l_B
        return LossOutput(softplus(-r_w_B) + (softplus(r_w_B) + softplus(r_l_B)) / 2)

    def at_reference(self) -> float | None:
        """2 log 2."""
        return 2 * math.log(2)


@register
@dataclass(kw_only=True)
class BCO:
    """Binary classifier optimisation: softplus(-(beta s_w - delta)) + softplus(beta s_l - delta).

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per response
    (`sum`, the default) or per token (`mean`); beta > 0 has the inverse unit. delta is the mean of all 2n rewards
    beta s of the optimiser batch (null, the default), through which no gradient flows, or a fixed number. A pair's
    value is the sum of its two responses'; a mean over single responses, as trainers of unpaired data take it, has
    half of it.

    Gradient: dL/ds_w = -beta sigma(delta - beta s_w) and dL/ds_l = beta sigma(beta s_l - delta). Each fades once its
    own response lies on the right side of delta.

    Ranges: beta 0.1 in TRL; the paper's delta is a running mean of the rewards over batches.

    Neighbours: bce is beta = 1, delta = 0 on means; TRL's bco_pair is delta = 0; kto bounds the same two terms.

    Source: arXiv 2404.04656.
    """

    name: ClassVar[str] = "bco"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = True

    beta: float = 0.1
    delta: float | None = None
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.1)
        holds = self.delta is None or math.isfinite(self.delta)
        require(holds, "loss.delta", self.delta, "be a finite number or null", "null")

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        r_w_B, r_l_B = self.beta * s_w_B, self.beta * s_l_B
        delta = torch.cat([r_w_B, r_l_B]).detach().mean() if self.delta is None else self.delta
        return LossOutput(softplus(delta - r_w_B) + softplus(r_l_B - delta))

    def at_reference(self) -> float | None:
        """2 log 2 with the batch's delta, which is 0 then."""
        delta = abs(self.delta or 0.0)
        return delta + 2 * math.log1p(math.exp(-delta))


@register
@dataclass(kw_only=True)
class KTO:
    """Kahneman-Tversky optimisation on pairs: lam_d sigma(-beta (s_w - z)) + lam_u sigma(-beta (z - s_l)).

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen (desirable) and the rejected (undesirable) response, in
    nats per response (`sum`, the default) or per token (`mean`); beta > 0 has the inverse unit. lam_d, lam_u > 0
    weigh the two (lambda_D, lambda_U in the paper). z is the reference point, through which no gradient flows: the
    batch's own (null, the default) or a fixed number. A pair's value is the sum of its two responses'; TRL averages
    over responses and has half of it.

    The paper estimates z as max(0, mean log-ratio) over prompts with a response of another prompt, which is near 0
    until the policy drifts as a whole. A loss sees the log-probs of its own pairs only, so here the mean runs over
    the 2n responses of the optimiser batch: it rises with the chosen and falls with the rejected responses as they
    are learnt, and is 0 while those fall more.

    Gradient: dL/ds_w = -lam_d beta sigma(u) sigma(-u), u = beta (s_w - z), and dL/ds_l = lam_u beta sigma(v) sigma(-v),
    v = beta (z - s_l). Both are largest at z and fade on either side: what is far off is let go.

    Ranges: lam_d = lam_u = 1 and beta 0.01, 0.05, 0.1 in SimPO's comparison.

    Neighbours: apo_zero is z = 0 with equal weights, less 1; bco has unbounded terms; brier squares them.

    Source: arXiv 2402.01306, eq. 7.
    """

    name: ClassVar[str] = "kto"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = True

    beta: float = 0.1
    lam_d: float = 1.0
    lam_u: float = 1.0
    z: float | None = None
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.1)
        require_positive("loss.lam_d", self.lam_d, 1.0)
        require_positive("loss.lam_u", self.lam_u, 1.0)
        if self.z is not None:
            require_not_negative("loss.z", self.z, "null")

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,)."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        z = torch.cat([s_w_B, s_l_B]).detach().mean().clamp(min=0) if self.z is None else self.z
        desirable_B = self.lam_d * sigmoid(-self.beta * (s_w_B - z))
        undesirable_B = self.lam_u * sigmoid(-self.beta * (z - s_l_B))
        return LossOutput(desirable_B + undesirable_B)

    def at_reference(self) -> float | None:
        """(lam_d + lam_u) / 2 with the batch's z, which is 0 then."""
        above = 1 / (1 + math.exp(-self.beta * (self.z or 0.0)))
        return self.lam_d * above + self.lam_u * (1 - above)


@register
@dataclass(kw_only=True)
class APOZero:
    """Anchored preference optimisation, zero: -sigma(r_w) + sigma(r_l).

    r_w = beta s_w, r_l = beta s_l; s is the log-ratio log pi/pi_ref of the chosen (w) and the rejected (l) response,
    in nats per response (`sum`, the default) or per token (`mean`); beta > 0 has the inverse unit. For data whose
    chosen responses are better than the model's own. TRL adds 1 to the value.

    Gradient: dL/ds_w = -beta sigma(r_w) sigma(-r_w) and dL/ds_l = beta sigma(r_l) sigma(-r_l): the chosen response is
    pulled above the reference, the rejected one pushed below, and both are let go once they are far off.

    Ranges: beta as dpo.

    Neighbours: kto at z = 0, less 1; apo_down is for data whose chosen responses are worse than the model's own.

    Source: arXiv 2408.06266, eq. 7.
    """

    name: ClassVar[str] = "apo_zero"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 0.1
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.1)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,)."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        return LossOutput(sigmoid(self.beta * s_l_B) - sigmoid(self.beta * s_w_B))

    def at_reference(self) -> float | None:
        """0."""
        return 0.0


@register
@dataclass(kw_only=True)
class APODown:
    """Anchored preference optimisation, down: sigma(r_w) - sigma(r_w - r_l).

    r_w = beta s_w, r_l = beta s_l; s is the log-ratio log pi/pi_ref of the chosen (w) and the rejected (l) response,
    in nats per response (`sum`, the default) or per token (`mean`); beta > 0 has the inverse unit. For data whose
    chosen responses are worse than the model's own. TRL adds 1 to the value.

    Gradient: with c(x) = sigma(x) sigma(-x), dL/ds_w = beta (c(r_w) - c(r_w - r_l)) and dL/ds_l = beta c(r_w - r_l).
    The rejected response is pushed down; the chosen one starts at rest and follows it down, by design.

    Ranges: beta as dpo.

    Neighbours: apo_zero for data whose chosen responses are better than the model's own.

    Source: arXiv 2408.06266, eq. 8.
    """

    name: ClassVar[str] = "apo_down"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 0.1
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.1)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,)."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        return LossOutput(sigmoid(self.beta * s_w_B) - sigmoid(self.beta * (s_w_B - s_l_B)))

    def at_reference(self) -> float | None:
        """0."""
        return 0.0


@register
@dataclass(kw_only=True)
class CalDPO:
    """Calibrated DPO: softplus(-(s_w - s_l)) + weight ((s_w - 1 / (2 beta))^2 + (s_l + 1 / (2 beta))^2).

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per response
    (`sum`, the default) or per token (`mean`); beta > 0 sets the target 1 / (2 beta) in that unit, weight >= 0 the
    weight of the calibration.

    Gradient: dL/ds_w = -sigma(s_l - s_w) + 2 weight (s_w - 1 / (2 beta)) and
    dL/ds_l = sigma(s_l - s_w) + 2 weight (s_l + 1 / (2 beta)). The chosen response has a target above the reference, so
    it is pulled back when it sinks.

    Ranges: beta 1e-3 in the paper.

    Neighbours: dpo with beta = 1 plus sppo times weight.

    Source: arXiv 2412.14516.
    """

    name: ClassVar[str] = "cal_dpo"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 1e-3
    weight: float = 1.0
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 1e-3)
        require_not_negative("loss.weight", self.weight, 1.0)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,)."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        return LossOutput(softplus(s_l_B - s_w_B) + self.weight * _distance(s_w_B, s_l_B, 1 / (2 * self.beta)))

    def at_reference(self) -> float | None:
        """Log 2 + weight / (2 beta^2)."""
        return math.log(2) + self.weight / (2 * self.beta**2)


@register
@dataclass(kw_only=True)
class SPPO:
    """Self-play preference optimisation, hard labels: (s_w - 1 / (2 beta))^2 + (s_l + 1 / (2 beta))^2.

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per response
    (`sum`, the default) or per token (`mean`); beta > 0, one over the paper's eta, sets the target 1 / (2 beta) in
    that unit. Hard: the chosen response wins with probability 1, where the paper asks a preference model.

    Gradient: dL/ds_w = 2 (s_w - 1 / (2 beta)) and dL/ds_l = 2 (s_l + 1 / (2 beta)). Each response has a target of its
    own and is moved in proportion to its distance, the chosen one up.

    Ranges: beta 1e-3 in the paper.

    Neighbours: ipo has one target for the difference; cal_dpo adds dpo with beta = 1.

    Source: arXiv 2405.00675, eq. 4.7.
    """

    name: ClassVar[str] = "sppo"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 1e-3
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 1e-3)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in squared nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        return LossOutput(_distance(s_w_B, s_l_B, 1 / (2 * self.beta)))

    def at_reference(self) -> float | None:
        """1 / (2 beta^2)."""
        return 1 / (2 * self.beta**2)


def _distance(s_w_B: Tensor, s_l_B: Tensor, target: float) -> Tensor:
    """Squared distance of the chosen log-ratio to `target` plus that of the rejected one to its negative."""
    return (s_w_B - target).square() + (s_l_B + target).square()
