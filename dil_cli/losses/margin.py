"""Margin, other functions of the difference of log-ratios: squared, hinged, matched, or compared by rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from dil_cli.errors import require, require_positive
from dil_cli.losses.common import Reduction, log_ratios, policy_scores, require_epsilon, sigmoid, softplus
from dil_cli.losses.registry import register
from dil_cli.types import LossOutput, PairLogps


@register
@dataclass(kw_only=True)
class IPO:
    """Squared distance of the margin to a target: (s_w - s_l - 1 / (2 tau))^2.

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per token (`mean`,
    the default, which the authors confirmed to TRL) or per response (`sum`, as the paper prints it). tau > 0 sets
    the target margin 1 / (2 tau) in that unit.

    Gradient: dL/ds_w = -2 (1 / (2 tau) - (s_w - s_l)) and dL/ds_l the same with the other sign. It falls linearly
    to 0 at the target and turns round beyond; as in DPO the two weights are equal.

    Ranges: tau 0.01, 0.1, 0.5, 1 in SimPO's comparison.

    Neighbours: dpo and rso put another function on the same margin; sppo gives each response a target of its own.
    TRL's ipo is the one per token, with beta for tau.

    Source: arXiv 2310.12036, eq. 17.
    """

    name: ClassVar[str] = "ipo"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    tau: float = 0.1
    reduction: Reduction = Reduction.mean

    def __post_init__(self) -> None:
        require_positive("loss.tau", self.tau, 0.1)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in squared nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        return LossOutput((s_w_B - s_l_B - 1 / (2 * self.tau)).square())

    def at_reference(self) -> float | None:
        """1 / (4 tau^2)."""
        return 1 / (4 * self.tau**2)


@register
@dataclass(kw_only=True)
class RSO:
    """Hinge on the difference of log-ratios: max(0, 1 - beta (s_w - s_l)).

    s_w, s_l are the log-ratios log pi/pi_ref of the chosen and the rejected response, in nats per response
    (`sum`, the default) or per token (`mean`); beta > 0 has the inverse unit (gamma in the paper).

    Gradient: dL/ds_w = -beta and dL/ds_l = +beta while beta (s_w - s_l) < 1, 0 from there on. A pair is pushed with
    full weight until its margin is reached and then left alone.

    Ranges: beta as dpo.

    Neighbours: dpo is its smooth form; slic puts the hinge on the policy's own log-probs. TRL's DPO trainer calls
    it hinge.

    Source: the hinge-norm loss of RSO, arXiv 2309.06657.
    """

    name: ClassVar[str] = "rso"
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
        return LossOutput((1 - self.beta * (s_w_B - s_l_B)).relu())

    def at_reference(self) -> float | None:
        """1."""
        return 1.0


@register
@dataclass(kw_only=True)
class EXO:
    """Reverse KL to a softened label: q log(q / (1 - epsilon)) + (1 - q) log((1 - q) / epsilon).

    q = sigma(beta (s_w - s_l)) is the probability that the chosen response wins; s_w, s_l are the log-ratios
    log pi/pi_ref of the chosen and the rejected response, in nats per response (`sum`, the default) or per token
    (`mean`); beta > 0 has the inverse unit. epsilon, above 0 and below 1/2, is the probability that the label gives to
    the rejected response.

    Gradient: with z = beta (s_w - s_l), dL/ds_w = -beta q (1 - q) (log((1 - epsilon) / epsilon) - z) and dL/ds_l the
    same with the other sign. It vanishes at the label's own margin and fades for pairs far off on either side.

    Ranges: epsilon 1e-3 in TRL; beta as dpo.

    Neighbours: cdpo is the forward KL to the same label.

    Source: arXiv 2402.00856, eq. 16.
    """

    name: ClassVar[str] = "exo"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 0.1
    epsilon: float = 1e-3
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.1)
        require(0 < self.epsilon < 0.5, "loss.epsilon", self.epsilon, "lie between 0 and 0.5", 1e-3)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        z_B = self.beta * (s_w_B - s_l_B)
        won_B = sigmoid(z_B) * (functional.logsigmoid(z_B) - math.log1p(-self.epsilon))
        lost_B = sigmoid(-z_B) * (functional.logsigmoid(-z_B) - math.log(self.epsilon))
        return LossOutput(won_B + lost_B)

    def at_reference(self) -> float | None:
        """-log 2 - (log(1 - epsilon) + log(epsilon)) / 2."""
        return -math.log(2) - (math.log1p(-self.epsilon) + math.log(self.epsilon)) / 2


@register
@dataclass(kw_only=True)
class AOT:
    """Alignment by optimal transport, by rank: (1 - epsilon) softplus(-beta d) + epsilon softplus(beta d).

    Distributions are compared over the optimiser batch, sorted against sorted, not pair with pair. paired=true: d is
    a pair's policy margin p_w - p_l less the reference margin of the same rank. paired=false: d is a chosen
    response's log-ratio s_w less the rejected log-ratio s_l of the same rank. Log-probs p and log-ratios s are in
    nats per response (`sum`, the default) or per token (`mean`); beta > 0 has the inverse unit; epsilon, in 0 to
    1/2, is the share of flipped labels. A pair's value is that of its own rank.

    Gradient: with g = beta (sigma(-beta d) - epsilon): of the sum over the batch, dL/ds_w = -g at its rank, and
    dL/ds_l = +g, of the same pair if paired, else at the rank of s_l. Ranks carry no gradient.

    Ranges: beta 0.1 and epsilon 0 in TRL.

    Neighbours: dpo when a batch holds one pair. Its weights are those of dpo, of another pair.

    Source: arXiv 2406.05882.
    """

    name: ClassVar[str] = "aot"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = True

    paired: bool = True
    beta: float = 0.1
    epsilon: float = 0.0
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.1)
        require_epsilon(self.epsilon)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        if self.paired:
            p_w_B, p_l_B = policy_scores(pair, self.reduction)
            margin_B = p_w_B - p_l_B
            reference_B = (margin_B - (s_w_B - s_l_B)).detach()
            d_B = margin_B - reference_B.sort().values[_ranks(margin_B)]
        else:
            d_B = s_w_B - s_l_B.sort().values[_ranks(s_w_B)]
        z_B = self.beta * d_B
        return LossOutput((1 - self.epsilon) * softplus(-z_B) + self.epsilon * softplus(z_B))

    def at_reference(self) -> float | None:
        """Log 2: every d is 0."""
        return math.log(2)


def _ranks(x_B: Tensor) -> Tensor:
    """The rank of each element, 0 for the smallest; the first of two equal ones comes first."""
    return x_B.argsort(stable=True).argsort(stable=True)
