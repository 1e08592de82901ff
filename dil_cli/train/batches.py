"""Which pairs each optimiser step takes: a pure function of the seed and the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dil_cli.data.batches import epoch_order


@dataclass(frozen=True)
class StepPlan:
    """`n` pairs, shuffled anew each epoch, `batch_size` a step; an epoch's short last batch is a step too."""

    n: int
    batch_size: int
    epochs: float
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the pairs."""
        return math.ceil(self.n / self.batch_size)

    @property
    def total(self) -> int:
        """Optimiser steps in the whole run, at least one."""
        # 0.1 epochs of 70 steps is 7 steps, not 8: the product's rounding error must not add one.
        return max(1, math.ceil(round(self.epochs * self.steps_per_epoch, 6)))

    def pairs_at(self, step: int) -> list[int]:
        """Indices of the pairs of step `step`, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _order(self.n, self.seed, epoch)
        chosen: list[int] = order[place * self.batch_size : (place + 1) * self.batch_size].tolist()
        return chosen


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return epoch_order(n, seed, epoch)
