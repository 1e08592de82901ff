"""Whether the numbers stayed sound: gradient norms, the guard of the exponentials, runs that failed.

T optimiser steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dil_cli.dynamics.statistics import Float64
from dil_cli.report.curves import Curve
from dil_cli.report.estimates import Metric
from dil_cli.report.experiment import Experiment, Group
from dil_cli.report.record import Steps
from dil_cli.report.runs import Run
from dil_cli.report.tables import Cell, Column, Table
from dil_cli.report.wording import Places, listed

LOST = 0.01
"""A gradient is called lost when its last norm is below this part of its first."""

POINTS = 100
"""Points of a curve; of more steps the mean of neighbours is drawn."""

GUARDED = Metric("guard", "guard", "share of pairs of whose exponentials the guard bent one", -1, percent=True)


def guarded(group: Group) -> float | None:
    """Mean share of pairs with a bent exponential, over all steps of all seeds; None where the loss has no guard."""
    shares = np.concatenate([record.steps.guarded for record in group.records])
    return None if np.isnan(shares).all() else float(np.nanmean(shares))


def most_guarded(group: Group) -> float | None:
    """The largest share of one batch."""
    shares = np.concatenate([record.steps.guarded for record in group.records])
    return None if np.isnan(shares).all() else float(np.nanmax(shares))


def first_gradient(group: Group) -> float | None:
    """The norm at the first step, mean over the seeds."""
    return _over_seeds(group, lambda steps: float(steps.grad_norm[0]))


def last_gradient(group: Group) -> float | None:
    """The median norm of the last tenth of the steps, mean over the seeds."""
    return _over_seeds(group, lambda steps: float(np.median(steps.grad_norm[-max(1, len(steps.grad_norm) // 10) :])))


def largest_gradient(group: Group) -> float | None:
    """The largest norm of all steps of all seeds."""
    found = [steps.grad_norm.max() for record in group.records if len((steps := record.steps).grad_norm)]
    return float(max(found)) if found else None


def numerics_table(experiment: Experiment) -> Table:
    """A row a group: how often the guard acted, how the gradient's norm went."""
    rows = []
    for group in experiment.groups:
        shares = [_cell(None if v is None else 100 * v, ".1f") for v in (guarded(group), most_guarded(group))]
        norms = [_cell(norm(group), ".3g") for norm in (first_gradient, last_gradient, largest_gradient)]
        rows.append((Cell(group.label), Cell(group.reduction), *shares, *norms))
    columns = (
        Column("group", "group", numeric=False), Column("reduction", "loss.reduction", numeric=False),
        Column("guard_percent", "guard acted, % of pairs"), Column("guard_percent_most", "most in a step, %"),
        Column("grad_norm_first", "gradient norm, first"), Column("grad_norm_last", "last"),
        Column("grad_norm_largest", "largest"),
    )  # fmt: skip
    note = (
        "The guard bends an exponential where it would overflow (loss.exp_cap); a dash: the loss has none. Gradient "
        "norms are those before clipping, last the median of the last tenth of the steps."
    )
    return Table("numerics", "Guard and gradient", columns, tuple(rows), note)


def findings(experiment: Experiment, places: Places, runs: Sequence[Run]) -> list[str]:
    """Failed runs, acting guards and lost gradients; nothing where there is none of them."""
    sentences = []
    failed = [run for run in runs if run.status == "failed"]
    if failed:
        reasons = [f"{run.folder.name} ({(run.failure or {}).get('what', 'no reason is given')})" for run in failed]
        sentences.append(f"{len(failed)} of {len(runs)} runs failed: {listed(reasons)}.")
    acted = [(group, share) for group in experiment.groups if (share := guarded(group))]
    if acted:
        (told,) = places.told([("The guard of the exponentials acted under", acted)], GUARDED)
        sentences.append(f"{told} of the pairs of a step.")
    lost = [(group, None) for group in experiment.groups if _lost(group)]
    if lost:
        (told,) = places.told([(f"The gradient's norm fell below {LOST:g} of its first value under", lost)], GUARDED)
        sentences.append(f"{told}.")
    if sentences and not failed:
        sentences.insert(0, "No run failed: a loss or a gradient that is not finite would have ended it.")
    return sentences


def gradient_curve(group: Group) -> Curve | None:
    """The norm over the steps, mean over the seeds."""
    return _curve(group, lambda steps: steps.grad_norm)


def guard_curve(group: Group) -> Curve | None:
    """The guarded share over the steps, mean over the seeds."""
    return _curve(group, lambda steps: steps.guarded)


def _curve(group: Group, column: Callable[[Steps], Float64]) -> Curve | None:
    longest = max((record.steps for record in group.records), key=lambda steps: len(steps.step))
    every = [column(record.steps) for record in group.records if len(record.steps.step) == len(longest.step)]
    values_T = np.mean(every, axis=0)
    if not len(values_T) or np.isnan(values_T).any():
        return None
    blocks = np.array_split(np.arange(len(values_T)), min(len(values_T), POINTS))
    return Curve(
        np.array([longest.step[block].mean() for block in blocks]),
        np.array([values_T[block].mean() for block in blocks]),
    )


def _over_seeds(group: Group, value: Callable[[Steps], float]) -> float | None:
    found = [value(record.steps) for record in group.records if len(record.steps.grad_norm)]
    return float(np.mean(found)) if found else None


def _lost(group: Group) -> bool:
    first, last = first_gradient(group), last_gradient(group)
    return first is not None and last is not None and last < LOST * first


def _cell(value: float | None, form: str) -> Cell:
    return Cell("-", (None,)) if value is None else Cell(format(value, form), (value,))
