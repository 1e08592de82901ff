"""Sequence likelihood calibration with human feedback."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dil_cli.errors import require, require_positive
from dil_cli.losses.common import Reduction, policy_scores
from dil_cli.losses.registry import register
from dil_cli.types import LossOutput, PairLogps


@register
@dataclass(kw_only=True)
class SLiC:
    """Hinge on the policy's own log-probs, held by a likelihood term: max(0, delta - p_w + p_l) - lam p_w.

    p_w, p_l are the policy's log-probs of the chosen and the rejected response, in nats per token (`mean`,
    the default) or per response (`sum`); both terms use the same. delta > 0 is the margin in that unit,
    lam >= 0 the weight of the likelihood term (lambda in the paper). No reference is used. The paper's
    likelihood target y_ref is the chosen response here, as where preference data has no third response.

    Gradient: dL/dp_w = -1 - lam and dL/dp_l = 1 inside the margin; -lam and 0 once p_w - p_l >= delta.

    Source: SLiC-HF, arXiv 2305.10425.
    """

    name: ClassVar[str] = "slic"
    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True

    delta: float = 1.0
    lam: float = 0.1
    reduction: Reduction = Reduction.mean

    def __post_init__(self) -> None:
        require_positive("loss.delta", self.delta, 1.0)
        holds = math.isfinite(self.lam) and self.lam >= 0
        require(holds, "loss.lam", self.lam, "be a finite number, 0 or more", 0.1)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        p_w_B, p_l_B = policy_scores(pair, self.reduction)
        return LossOutput((self.delta - p_w_B + p_l_B).relu() - self.lam * p_w_B)

    def at_reference(self) -> float | None:
        """None: the value depends on the log-probs themselves."""
        return None
