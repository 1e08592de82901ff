"""The held-out metrics of each group, their differences, and which group is the best as far as the intervals say.

P probe pairs, K numbers of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Literal

import numpy as np

from dil_cli.dynamics.statistics import MIN_MARGIN_GAIN, Float64
from dil_cli.report.experiment import Group
from dil_cli.report.intervals import Interval, bootstrap, paired_difference, t_interval
from dil_cli.report.record import Record


@dataclass(frozen=True)
class Metric:
    """A metric of the last measurement. `better` is 1 for more, -1 for less, 0 where neither is."""

    key: str
    label: str
    meaning: str
    better: int
    percent: bool = False
    digits: int = 3


METRICS = (
    Metric("delta/chosen", "chosen", "change of the chosen responses' log-prob, nats per token", 1),
    Metric("delta/rejected", "rejected", "change of the rejected responses' log-prob, nats per token", 0),
    Metric("delta/margin", "margin", "chosen minus rejected change, nats per token", 1),
    Metric("accuracy_mean", "accuracy per token", "share of pairs whose margin per token grew", 1, percent=True),
    Metric("accuracy_sum", "accuracy whole", "share of pairs whose margin of whole responses grew", 1, percent=True),
    Metric("chosen_cost", "chosen_cost", "chosen likelihood lost per margin gained", -1, digits=2),
    Metric("both_falling", "both falling", "share of pairs of which both responses lost likelihood", -1, percent=True),
)
BY_KEY = {metric.key: metric for metric in METRICS}
COLUMNS = {
    "delta/chosen": ("chosen",),
    "delta/rejected": ("rejected",),
    "delta/margin": ("margin",),
    "accuracy_mean": ("won_mean",),
    "accuracy_sum": ("won_sum",),
    "chosen_cost": ("chosen", "margin"),
    "both_falling": ("both_falling",),
}
"""The numbers of a pair that a metric is computed from."""


@dataclass(frozen=True)
class Estimate:
    """A number and its interval, over seeds (Student's t) or over the probe pairs of one seed (bootstrap)."""

    interval: Interval
    over: Literal["seeds", "pairs"]

    @property
    def mean(self) -> float:
        """The number."""
        return self.interval.mean

    def sign(self) -> int:
        """1 or -1 when the whole interval lies on that side of 0; 0 when it holds 0 or there is none."""
        return int(self.interval.above_0) - int(self.interval.below_0)


def seed_values(group: Group, metric: Metric) -> dict[int, float]:
    """The final number of each seed that has one."""
    values = {record.run.seed: _final(record, metric) for record in group.records}
    return {seed: float(value) for seed, value in values.items() if value is not None}


@cache
def estimate(group: Group, metric: Metric) -> Estimate | None:
    """The metric of a group; None where its runs have none, as demonstrations have no margin."""
    values = seed_values(group, metric)
    if not values:
        return None
    if len(group.records) > 1:
        return Estimate(t_interval(list(values.values())), "seeds")
    drawn = bootstrap(_samples(group.records[0], metric), _statistic(metric))
    (mean,) = values.values()
    return Estimate(Interval(mean, drawn.low, drawn.high, drawn.n), "pairs")


@cache
def difference(a: Group, b: Group, metric: Metric) -> Estimate | None:
    """The metric of a less that of b, seed by seed; over the pairs of the one seed where they share only one.

    None where they share no seed, or have not measured the same pairs.
    """
    of_a, of_b = seed_values(a, metric), seed_values(b, metric)
    by_seed = paired_difference(of_a, of_b)
    if by_seed is None or by_seed.n > 1:
        return None if by_seed is None else Estimate(by_seed, "seeds")
    (seed,) = of_a.keys() & of_b.keys()
    one, other = (next(r for r in group.records if r.run.seed == seed) for group in (a, b))
    if not np.array_equal(one.pairs.row, other.pairs.row):
        return None
    both_PK = np.hstack([_samples(one, metric), _samples(other, metric)])
    statistic = _statistic(metric)
    k = len(COLUMNS[metric.key])
    drawn = bootstrap(both_PK, lambda mean_K: statistic(mean_K[..., :k]) - statistic(mean_K[..., k:]))
    return Estimate(Interval(by_seed.mean, drawn.low, drawn.high, drawn.n), "pairs")


def best(groups: Sequence[Group], metric: Metric) -> Group | None:
    """The group that is better than every other one, each paired difference excluding 0; None where none is."""
    there = [(fmean(values.values()), group) for group in groups if (values := seed_values(group, metric))]
    if metric.better == 0 or len(there) < 2:
        return None
    _, first = max(there, key=lambda pair: metric.better * pair[0])
    for _, other in there:
        if other is not first:
            gap = difference(first, other, metric)
            if gap is None or gap.sign() != metric.better:
                return None
    return first


def _final(record: Record, metric: Metric) -> float | None:
    """As recorded; accuracies from the pairs, since a record has not both for every reduction."""
    if not metric.key.startswith("accuracy"):
        value: float | None = record.end.get(f"probe/{metric.key}")
        return value
    share = float(_samples(record, metric).mean())
    return None if np.isnan(share) else share


def _samples(record: Record, metric: Metric) -> Float64:
    """One row a pair, (P, K)."""
    return np.column_stack([getattr(record.pairs, name) for name in COLUMNS[metric.key]]).astype(np.float64)


def _statistic(metric: Metric) -> Callable[[Float64], Float64]:
    """From the means of the metric's columns, (..., K), to the metric, (...)."""
    return _cost if metric.key == "chosen_cost" else _mean_of_pairs


def _mean_of_pairs(mean_K: Float64) -> Float64:
    mean: Float64 = mean_K[..., 0]
    return mean


def _cost(mean_K: Float64) -> Float64:
    """As the record has it: no number while the margin has grown by less than `MIN_MARGIN_GAIN`."""
    chosen, margin = mean_K[..., 0], mean_K[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(margin >= MIN_MARGIN_GAIN, -chosen / margin, np.nan)
