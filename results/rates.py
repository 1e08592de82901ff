"""The learning rate of each method: chosen by accuracy on questions held out of the training pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dil_cli.report.record import Record
from results.grid import Arm, Grid, NotRun

EXPERIMENT = "results/rates"
KEY = "optim.lr_factor"
FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""All that can be tried; the experiment has those in the middle."""


@dataclass(frozen=True, eq=False)
class Rate:
    """What validation says of one factor on the model's learning rate, at the end of training."""

    factor: float
    record: Record

    def end(self, key: str) -> float:
        """A number of the last measurement."""
        return float(self.record.end[f"probe/{key}"])

    @property
    def standard_error(self) -> float:
        """Of the accuracy, by its pairs."""
        accuracy = self.end("accuracy")
        return math.sqrt(accuracy * (1 - accuracy) / len(self.record.pairs.row))

    @property
    def word(self) -> str:
        """As an override."""
        return f"{KEY}={self.factor:g}"


def grid(arm: Arm, words: Sequence[str] = ()) -> Grid:
    """The runs that the rate of an arm is chosen on, before any more are called for."""
    return Grid(EXPERIMENT, (*words, *arm.words))


def measured(arm: Arm, words: Sequence[str] = ()) -> list[Rate]:
    """What is done, by the size of the rate, with the rates that were added to the grid.

    Raises:
        NotRun: when a run of the grid itself is missing.
    """
    records = grid(arm, words).records()
    rates = [Rate(float(record.run.config["optim"]["lr_factor"]), record) for record in records]
    while (factor := wanted(rates)) is not None:
        try:
            (record,) = one_more(arm, words, factor).records()
        except NotRun:
            break
        rates.append(Rate(factor, record))
    return sorted(rates, key=lambda rate: rate.factor)


def wanted(rates: Sequence[Rate]) -> float | None:
    """The rate that is to be tried yet: where the best one lies at an end of those that were, the next one beyond."""
    tried = sorted(FACTORS.index(rate.factor) for rate in rates)
    chosen = FACTORS.index(best(rates).factor)
    beyond = [-1] if chosen == tried[0] else []
    beyond += [1] if chosen == tried[-1] else []
    return next((FACTORS[chosen + step] for step in beyond if 0 <= chosen + step < len(FACTORS)), None)


def one_more(arm: Arm, words: Sequence[str], factor: float) -> Grid:
    """A rate beside the grid's."""
    return Grid(EXPERIMENT, (*words, *arm.words, f"{KEY}={factor:g}"))


def best(rates: Sequence[Rate]) -> Rate:
    """The highest accuracy; of equal ones the smallest rate."""
    return max(rates, key=lambda rate: (rate.end("accuracy"), -rate.factor))
