"""Reference-free, the policy's own log-probs: nothing holds the chosen response but a term of the loss for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dil_cli.errors import require_not_negative, require_positive
from dil_cli.losses.common import (
    Reduction,
    beyond_cap,
    guarded_exp,
    policy_scores,
    reduce_logps,
    require_reduction,
    softplus,
)
from dil_cli.losses.registry import register
from dil_cli.types import LossOutput, PairLogps

NEARLY_CERTAIN = -1e-7
"""A mean log-prob above this one is a probability of 1 up to rounding; the log-odds go on along their tangent."""


@register
@dataclass(kw_only=True)
class SLiC:
    """Hinge on the policy's own log-probs, held by a likelihood term: max(0, delta - p_w + p_l) - lam p_w.

    p_w, p_l are the policy's log-probs of the chosen and the rejected response, in nats per token (`mean`,
    the default) or per response (`sum`); both terms use the same. delta > 0 is the margin in that unit,
    lam >= 0 the weight of the likelihood term (lambda in the paper). No reference is used. The paper's
    likelihood target y_ref is the chosen response here, as where preference data has no third response.

    Gradient: dL/dp_w = -1 - lam and dL/dp_l = 1 inside the margin; -lam and 0 once p_w - p_l >= delta.

    Ranges: lam 0.1, 0.5, 1, 10 and delta 0.1, 0.5, 1, 2 in SimPO's comparison.

    Neighbours: rrhf is delta = 0 on means; rso puts the hinge on log-ratios to a reference. The hinge of TRL's DPO
    trainer is rso; that of its CPO trainer is this one on sums, with the likelihood as one mean over all tokens.

    Source: SLiC-HF, arXiv 2305.10425.
    """

    name: ClassVar[str] = "slic"
    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    delta: float = 1.0
    lam: float = 0.1
    reduction: Reduction = Reduction.mean

    def __post_init__(self) -> None:
        require_positive("loss.delta", self.delta, 1.0)
        require_not_negative("loss.lam", self.lam, 0.1)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        p_w_B, p_l_B = policy_scores(pair, self.reduction)
        return LossOutput((self.delta - p_w_B + p_l_B).relu() - self.lam * p_w_B)

    def at_reference(self) -> float | None:
        """None: the value depends on the log-probs themselves."""
        return None


@register
@dataclass(kw_only=True)
class SimPO:
    """Logistic loss on the difference of mean log-probs, less a margin: softplus(gamma - beta (p_w - p_l)).

    p_w, p_l are the policy's log-probs of the chosen and the rejected response in nats per token; the loss
    is defined on means only. beta > 0 has the inverse unit, gamma >= 0 is the target margin of
    beta (p_w - p_l) and has none. Defaults are the authors' for Mistral-7B-Base.

    Gradient: dL/dp_w = -beta sigma(-z) and dL/dp_l = +beta sigma(-z), z = beta (p_w - p_l) - gamma. As in DPO
    the two weights are equal, and no reference holds the chosen response up.

    Ranges: beta 2.0, 2.5 and gamma 0.3, 0.5, 1.0, 1.2, 1.4, 1.6 in the paper; the presets are the authors' choice.

    Neighbours: dpo on means without its reference; cpo on sums with a likelihood term; simper without beta and gamma.

    Source: arXiv 2405.14734, eq. 6.
    """

    name: ClassVar[str] = "simpo"
    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 2.0
    gamma: float = 1.6
    reduction: Reduction = Reduction.mean

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 2.0)
        require_not_negative("loss.gamma", self.gamma, 1.6)
        require_reduction(self.name, self.reduction, Reduction.mean)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        p_w_B, p_l_B = policy_scores(pair, self.reduction)
        return LossOutput(softplus(self.gamma - self.beta * (p_w_B - p_l_B)))

    def at_reference(self) -> float | None:
        """None: the value depends on the log-probs themselves."""
        return None


@register
@dataclass(kw_only=True)
class CPO:
    """Contrastive preference optimisation: softplus(-beta (p_w - p_l)) - lam p_nll.

    p_w, p_l are the policy's log-probs of the chosen and the rejected response in nats per response; the loss is
    defined on sums only. beta > 0 has the inverse unit, lam >= 0 is the weight of the likelihood term (lambda in
    the paper), whose p_nll is the chosen log-prob per response (nll=sum, the paper's) or per token (nll=mean).

    Gradient: dL/dp_w = -beta sigma(-z) - lam and dL/dp_l = +beta sigma(-z), z = beta (p_w - p_l), with nll=sum. The
    likelihood term pulls for ever, the rest as in dpo.

    Ranges: lam 1 in the paper; beta 0.01, 0.05, 0.1 in SimPO's comparison.

    Neighbours: dpo + sft without a reference; simpo on means with a margin. TRL adds the likelihood as one mean
    over all tokens of the batch, nll=mean weighs each response the same.

    Source: arXiv 2401.08417.
    """

    name: ClassVar[str] = "cpo"
    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    beta: float = 0.1
    lam: float = 1.0
    nll: Reduction = Reduction.sum
    reduction: Reduction = Reduction.sum

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 0.1)
        require_not_negative("loss.lam", self.lam, 1.0)
        require_reduction(self.name, self.reduction, Reduction.sum)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        p_w_B, p_l_B = policy_scores(pair, self.reduction)
        p_nll_B = reduce_logps(pair.policy_chosen_B, pair.chosen_tokens_B, self.nll)
        return LossOutput(softplus(-self.beta * (p_w_B - p_l_B)) - self.lam * p_nll_B)

    def at_reference(self) -> float | None:
        """None: the value depends on the log-probs themselves."""
        return None


@register
@dataclass(kw_only=True)
class ORPO:
    """Odds-ratio preference optimisation: -p_w + lam softplus(-(lo(p_w) - lo(p_l))), lo(p) = p - log(1 - e^p).

    p_w, p_l are the policy's log-probs of the chosen and the rejected response in nats per token; the loss is
    defined on means only. lo(p) is the log-odds of the geometric mean of the token probabilities. lam >= 0 is the
    weight of the odds-ratio term (lambda in the paper). Above p = -1e-7, a probability of 1 up to rounding, lo
    continues along its tangent, and the pair counts as guarded.

    Gradient: with g = lam sigma(lo(p_l) - lo(p_w)), dL/dp_w = -1 - g / (1 - e^{p_w}) and
    dL/dp_l = g / (1 - e^{p_l}). The likelihood term is sft; likely responses are pushed and pulled harder.

    Ranges: lam 0.1 in the paper; 0.1, 0.5, 1, 2 in SimPO's comparison.

    Neighbours: sft + a dpo-like term; simpo compares log-probs where this one compares log-odds. TRL takes the
    likelihood as one mean over all tokens of the batch.

    Source: arXiv 2403.07691.
    """

    name: ClassVar[str] = "orpo"
    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    lam: float = 0.1
    reduction: Reduction = Reduction.mean

    def __post_init__(self) -> None:
        require_not_negative("loss.lam", self.lam, 0.1)
        require_reduction(self.name, self.reduction, Reduction.mean)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats, and where a response was certain."""
        p_w_B, p_l_B = policy_scores(pair, self.reduction)
        loss_B = self.lam * softplus(_log_odds(p_l_B) - _log_odds(p_w_B)) - p_w_B
        return LossOutput(loss_B, (p_w_B.detach() > NEARLY_CERTAIN) | (p_l_B.detach() > NEARLY_CERTAIN))

    def at_reference(self) -> float | None:
        """None: the value depends on the log-probs themselves."""
        return None


def _log_odds(p_B: Tensor) -> Tensor:
    """p - log(1 - e^p) up to p = -1e-7, its tangent above, so that a certain response makes no infinity."""
    exact_B = p_B.clamp(max=NEARLY_CERTAIN)
    slope = 1 / -torch.tensor(NEARLY_CERTAIN, dtype=torch.float64).expm1().item()
    return exact_B - (-exact_B.expm1()).log() + slope * (p_B - NEARLY_CERTAIN).relu()


@register
@dataclass(kw_only=True)
class RRHF:
    """Ranking of mean log-probs, held by a likelihood term: max(0, p_l - p_w) - lam p_nll.

    p_w, p_l are the policy's log-probs of the chosen and the rejected response in nats per token; the ranking is
    defined on means only. lam >= 0 is the weight of the likelihood term (lambda in SimPO's comparison, 1 in the
    paper), whose p_nll is the chosen log-prob per response (nll=sum, the paper's) or per token (nll=mean).

    Gradient: dL/dp_w = -1 and dL/dp_l = 1 while the rejected response is the more likely one, 0 once it is not;
    the likelihood term pulls on the chosen one for ever.

    Ranges: lam 0.1, 0.5, 1, 10 in SimPO's comparison.

    Neighbours: slic with delta = 0 and its own likelihood unit.

    Source: arXiv 2304.05302, with two responses.
    """

    name: ClassVar[str] = "rrhf"
    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    lam: float = 1.0
    nll: Reduction = Reduction.sum
    reduction: Reduction = Reduction.mean

    def __post_init__(self) -> None:
        require_not_negative("loss.lam", self.lam, 1.0)
        require_reduction(self.name, self.reduction, Reduction.mean)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        p_w_B, p_l_B = policy_scores(pair, self.reduction)
        p_nll_B = reduce_logps(pair.policy_chosen_B, pair.chosen_tokens_B, self.nll)
        return LossOutput((p_l_B - p_w_B).relu() - self.lam * p_nll_B)

    def at_reference(self) -> float | None:
        """None: the value depends on the log-probs themselves."""
        return None


@register
@dataclass(kw_only=True)
class SimPER:
    """Difference of inverse perplexities: -e^{p_w} + e^{p_l}.

    p_w, p_l are the policy's log-probs of the chosen and the rejected response in nats per token; the loss is
    defined on means only, where e^p is one over the perplexity. It lies in -1 to 1 and has no hyper-parameter. A
    log-prob above 0 is rounding; e^p continues along its tangent there, and the pair counts as guarded.

    Gradient: dL/dp_w = -e^{p_w} and dL/dp_l = e^{p_l}, in 0 to 1. The push fades as the rejected response becomes
    unlikely, and so does the pull on an unlikely chosen one.

    Ranges: none; learning rates are in the presets.

    Neighbours: simpo with neither beta nor gamma; lsif's and ukl's pull and push with p in place of s.

    Source: arXiv 2502.00883.
    """

    name: ClassVar[str] = "simper"
    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    reduction: Reduction = Reduction.mean

    def __post_init__(self) -> None:
        require_reduction(self.name, self.reduction, Reduction.mean)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,), and where a log-prob was above 0."""
        p_w_B, p_l_B = policy_scores(pair, self.reduction)
        loss_B = guarded_exp(p_l_B, cap=0.0) - guarded_exp(p_w_B, cap=0.0)
        return LossOutput(loss_B, beyond_cap(0.0, p_w_B, p_l_B))

    def at_reference(self) -> float | None:
        """None: the value depends on the log-probs themselves."""
        return None
