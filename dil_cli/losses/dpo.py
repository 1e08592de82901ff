"""Direct preference optimisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dil_cli.errors import require_positive
from dil_cli.losses.common import Reduction, log_ratios, softplus
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

    Source: arXiv 2305.18290, eq. 7. With beta = 1 it is the CPC member of DIL (arXiv 2503.05079).
    """

    name: ClassVar[str] = "dpo"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True

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
