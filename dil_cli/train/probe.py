"""Measure the probe set during training: the same held-out pairs at step 0 and at regular steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dil_cli.dynamics.measure import Compute, score_pairs, with_reference
from dil_cli.dynamics.probe import write_probe
from dil_cli.dynamics.statistics import pair_statistics
from dil_cli.losses import PreferenceLoss
from dil_cli.types import PairLogps, TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Probe:
    """Holds the pairs and their log-probs at step 0, to which every later measurement is compared."""

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: Sequence[TokenisedPair],
        loss: PreferenceLoss,
        compute: Compute,
        folder: Path,
    ) -> None:
        self.model, self.pairs, self.loss, self.compute, self.folder = model, pairs, loss, compute, folder
        self.start: PairLogps | None = None
        """At step 0: given from the reference column, whose cache may have it, or else measured first."""

    def measure(self, step: int, advance: Callable[[int], None] = lambda pairs_done: None) -> dict[str, Any]:
        """Score the pairs, write `probe/step-*.parquet`, and return the row for the record.

        The first call is step 0; the policy is its own reference there, for every loss.
        """
        known = self.start if step == 0 else None
        policy = score_pairs(self.model, self.pairs, self.compute, advance) if known is None else known
        if self.start is None:
            self.start = policy
        logps = with_reference(policy, self.start)
        if self.compute.world.is_main:
            write_probe(self.folder, step, [pair.row for pair in self.pairs], logps, self.start)
        values = pair_statistics(logps, self.loss.reduction.value, self.start)
        values["loss"] = float(self.loss(logps).loss_B.double().mean())
        return {"step": step, **{f"probe/{name}": value for name, value in sorted(values.items())}}
