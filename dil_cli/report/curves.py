"""Numbers behind the figures: curves over the steps and over the numeric key, the spread of the per-pair change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dil_cli.dynamics.statistics import Float64
from dil_cli.report.estimates import Metric, estimate
from dil_cli.report.experiment import Group
from dil_cli.report.intervals import t_quantile

BAND_FROM = 3
"""Seeds from which on a band is drawn; fewer are shown one by one, since their t interval fills the axes."""

QUARTILES = 4


@dataclass(frozen=True, eq=False)
class Curve:
    """A mean over the seeds along x, with its 95 % band or, with few seeds, each seed's own; (N,) each."""

    x_N: Float64
    mean_N: Float64
    low_N: Float64 | None = None
    high_N: Float64 | None = None
    each: tuple[Float64, ...] = ()


def over_steps(probes: Sequence[Sequence[Mapping[str, Any]]], metric: str) -> Curve | None:
    """A metric over the optimiser steps that all seeds were measured at; None where the runs have none.

    Args:
        probes: the probe rows of each seed.
        metric: without `probe/`.
    """
    tables = [{int(row["step"]): _at(row, metric) for row in rows if _at(row, metric) is not None} for rows in probes]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    if not steps:
        return None
    values_SN = np.array([[table[step] for step in steps] for table in tables], dtype=np.float64)
    x_N, mean_N = np.array(steps, dtype=np.float64), values_SN.mean(axis=0)
    if len(values_SN) < BAND_FROM:
        return Curve(x_N, mean_N, each=tuple(values_SN) if len(values_SN) > 1 else ())
    half_N = t_quantile(0.975, len(values_SN) - 1) * values_SN.std(axis=0, ddof=1) / np.sqrt(len(values_SN))
    return Curve(x_N, mean_N, mean_N - half_N, mean_N + half_N)


def over_x(points: Sequence[tuple[float, Group]], metric: Metric) -> Curve | None:
    """A final metric over the numeric key, with the intervals of the table; None below two points."""
    found = [(x, kept) for x, group in points if (kept := estimate(group, metric)) is not None]
    if len(found) < 2:
        return None
    low, high = ([getattr(kept.interval, end) for _, kept in found] for end in ("low", "high"))
    return Curve(
        x_N=np.array([x for x, _ in found]),
        mean_N=np.array([kept.mean for _, kept in found]),
        low_N=np.array([np.nan if end is None else end for end in low]),
        high_N=np.array([np.nan if end is None else end for end in high]),
    )


def shares(group: Group, column: str) -> tuple[Float64, Float64] | None:
    """The per-pair change of all seeds as a distribution: values, and the share of pairs at or below each."""
    values = np.concatenate([getattr(record.pairs, column) for record in group.records])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    share = np.linspace(0, 1, 101)
    return np.quantile(values, share), share


def lost_by_length(group: Group) -> tuple[list[str], Float64]:
    """Share of pairs whose chosen response became less likely, by quartile of its length in tokens.

    Returns:
        The quartiles' ranges, and the mean over the seeds of each one's share.
    """
    tokens = group.records[0].pairs.chosen_tokens
    edges = np.quantile(tokens, np.linspace(0, 1, QUARTILES + 1)[1:-1])
    bins = np.searchsorted(edges, tokens, side="left")
    present = [i for i in range(QUARTILES) if (bins == i).any()]
    ranges = [f"{tokens[bins == i].min()}\N{EN DASH}{tokens[bins == i].max()}" for i in present]
    matching = [record for record in group.records if np.array_equal(record.pairs.chosen_tokens, tokens)]
    lost = [[float((record.pairs.chosen[bins == i] < 0).mean()) for i in present] for record in matching]
    return ranges, np.array(lost).mean(axis=0)


def _at(row: Mapping[str, Any], metric: str) -> float | None:
    """A change at step 0 is 0, whether or not the record says so."""
    value = row.get(f"probe/{metric}")
    if value is None and row["step"] == 0 and metric.startswith("delta/") and "probe/logps/rejected" in row:
        return 0.0
    return float(value) if isinstance(value, int | float) else None
