"""SFT, imitation of the chosen responses alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dil_cli.losses.common import Reduction, reduce_logps
from dil_cli.losses.registry import register
from dil_cli.types import LossOutput, PairLogps


@register
@dataclass(kw_only=True)
class SFT:
    """Behaviour cloning: -p_w.

    p_w is the policy's log-prob of the chosen response, in nats per token (`mean`, the default) or per
    response (`sum`). The rejected response is not looked at, so a demonstration will do.

    Gradient: dL/dp_w = -1. A token of a short response weighs more under `mean`, the same under `sum`.

    Ranges: none.

    Neighbours: ukl adds a push on the rejected response; as a term of combine it holds the chosen one. TRL
    takes one mean over all tokens of the batch, where a long response weighs more.

    Source: maximum likelihood; log-loss behaviour cloning in the words of arXiv 2503.05079.
    """

    name: ClassVar[str] = "sft"
    needs_reference: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = False
    couples_batch: ClassVar[bool] = False

    reduction: Reduction = Reduction.mean

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,) in nats."""
        return LossOutput(-reduce_logps(pair.policy_chosen_B, pair.chosen_tokens_B, self.reduction))

    def at_reference(self) -> float | None:
        """None: the value is the data's own entropy under the reference."""
        return None
