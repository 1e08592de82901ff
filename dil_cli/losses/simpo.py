"""Simple preference optimisation, without a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dil_cli.errors import require, require_positive
from dil_cli.losses.common import Reduction, policy_scores, require_reduction, softplus
from dil_cli.losses.registry import register
from dil_cli.types import LossOutput, PairLogps


@register
@dataclass(kw_only=True)
class SimPO:
    """Logistic loss on the difference of mean log-probs, less a margin: softplus(gamma - beta (p_w - p_l)).

    p_w, p_l are the policy's log-probs of the chosen and the rejected response in nats per token; the loss
    is defined on means only. beta > 0 has the inverse unit, gamma >= 0 is the target margin of
    beta (p_w - p_l) and has none. Defaults are the authors' for Mistral-7B-Base.

    Gradient: dL/dp_w = -beta sigma(-z) and dL/dp_l = +beta sigma(-z), z = beta (p_w - p_l) - gamma. As in DPO
    the two weights are equal, and no reference holds the chosen response up.

    Source: arXiv 2405.14734, eq. 6.
    """

    name: ClassVar[str] = "simpo"
    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True

    beta: float = 2.0
    gamma: float = 1.6
    reduction: Reduction = Reduction.mean

    def __post_init__(self) -> None:
        require_positive("loss.beta", self.beta, 2.0)
        holds = math.isfinite(self.gamma) and self.gamma >= 0
        require(holds, "loss.gamma", self.gamma, "be a finite number, 0 or more", 1.6)
        require_reduction(self.name, self.reduction, Reduction.mean)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        p_w_B, p_l_B = policy_scores(pair, self.reduction)
        return LossOutput(softplus(self.gamma - self.beta * (p_w_B - p_l_B)))

    def at_reference(self) -> float | None:
        """None: the value depends on the log-probs themselves."""
        return None
