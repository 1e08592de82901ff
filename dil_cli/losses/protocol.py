"""What the rest of the package may ask of a loss."""

from __future__ import annotations

from typing import ClassVar, Protocol

from dil_cli.losses.common import Reduction
from dil_cli.types import LossOutput, PairLogps


class PreferenceLoss(Protocol):
    """A dataclass whose fields are the hyper-parameters and whose call gives one loss per pair.

    A loss inherits nothing. It is a `@dataclass(kw_only=True)` with these members under `@register`
    (`dil_cli/losses/registry.py`), and OmegaConf can hold it as a structured config. The three booleans are class
    variables, properties where they depend on the fields (`combine`); `reduction` is a field or a property.
    """

    name: ClassVar[str]
    """The word after `loss=`."""

    @property
    def needs_reference(self) -> bool:
        """Whether the reference fields of `PairLogps` must be filled."""
        ...

    @property
    def needs_rejected(self) -> bool:
        """Whether each pair must have a rejected response; False trains on demonstrations too."""
        ...

    @property
    def couples_batch(self) -> bool:
        """Whether a pair's loss depends on the other pairs of its batch.

        Such a loss is always called on the whole optimiser batch. A statistic that the method holds fixed is
        detached in the loss.
        """
        ...

    @property
    def reduction(self) -> Reduction:
        """How token log-probs become one number; shown wherever a result is shown."""
        ...

    def __call__(self, pair: PairLogps) -> LossOutput:
        """The losses (B,) of B pairs in nats; the training objective is their mean.

        They are float32, or float64 if the log-probs are, and carry gradient to the policy's log-probs.
        """
        ...

    def at_reference(self) -> float | None:
        """The value of every pair when policy equals reference; None where it depends on the data."""
        ...
