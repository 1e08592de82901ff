"""Is reasoning kept: right and wrong GSM8K solutions before and after alignment. P probe pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.dynamics.probe import read_probe
from dil_cli.dynamics.statistics import Float64
from dil_cli.report.figure import Figure
from dil_cli.report.intervals import Interval, wilson
from dil_cli.report.panels import figures
from dil_cli.report.record import Record
from dil_cli.report.tables import MINUS
from results import exact, rates, tables
from results.chain import Chain
from results.compared import arranged
from results.page import Page


@dataclasses.dataclass(frozen=True)
class Solutions:
    """What a policy thinks of right and wrong solutions to the same problems: a mean over the pairs each.

    `right` and `wrong` are nats per token; `ranked` is the share of pairs whose right solution is likelier per token,
    `ranked_whole` the same of whole solutions.
    """

    right: float
    wrong: float
    ranked: float
    ranked_whole: float


def page(name: str, question: str, chains: Sequence[Chain], start: str, problems: int = exact.PROBLEMS) -> Page:
    """A page on right and wrong solutions.

    Args:
        name: of the page and its figure.
        question: it asks.
        chains: whose runs, of another page.
        start: the model that they start from, as `dil eval` takes it.
        problems: that each model is asked to solve.
    """

    def found() -> dict[str, list[Record]]:
        return {chain.arm.label: chain.records() for chain in chains}

    def measure(at_once: int) -> None:
        runs = [str(record.run.folder) for of_arm in found().values() for record in of_arm]
        exact.measure_all([start, *runs], problems, at_once)

    def measuring() -> float:
        runs = sum(len(grid.cells()) for chain in chains for grid in chain.at(f"{rates.KEY}=1"))
        return (1 + runs) * problems * exact.SOLUTION

    def blocks() -> Mapping[str, str]:
        records = found()
        return {
            "cost": tables.cost(chains),
            "solutions": table({label: [measured(record) for record in of_arm] for label, of_arm in records.items()}),
            "exact": exact_table(start, records, problems),
            "cells": tables.cells(chains),
        }

    def draw(folder: Path) -> None:
        experiment = arranged([record for of_arm in found().values() for record in of_arm], "loss=dpo", None)
        (pairs,) = (figure for figure in figures(experiment) if figure.name == "pairs")
        figure: Figure = dataclasses.replace(pairs, name=name)
        figure.save(folder, ("png",))

    return Page(name, question, tuple(chains), blocks, draw, measure=measure, measuring=measuring)


def measured(record: Record) -> tuple[Solutions, Solutions]:
    """Before the first step and after the last."""
    rows = read_probe(RunFolder(record.run.folder).probe)
    column = {name: np.array(rows.column(name).to_pylist(), dtype=np.float64) for name in rows.column_names}
    first, last = (
        _solutions({name: values[column["step"] == step] for name, values in column.items()})
        for step in (column["step"].min(), column["step"].max())
    )
    return first, last


def _solutions(column: Mapping[str, Float64]) -> Solutions:
    sums_P = [column[f"{side}_logp_sum"] for side in ("chosen", "rejected")]
    means_P = [column[f"{side}_logp_sum"] / column[f"{side}_tokens"] for side in ("chosen", "rejected")]
    return Solutions(
        right=float(means_P[0].mean()),
        wrong=float(means_P[1].mean()),
        ranked=float((means_P[0] > means_P[1]).mean()),
        ranked_whole=float((sums_P[0] > sums_P[1]).mean()),
    )


def table(found: Mapping[str, Sequence[tuple[Solutions, Solutions]]]) -> str:
    """The model before, and each arm after: mean and interval over seeds."""
    starts = [start for runs in found.values() for start, _ in runs]
    lines = [["before", *(_plain([getattr(start, key) for start in starts], key) for key in KEYS)]]
    for label, runs in found.items():
        lines.append([label, *(_with_interval([getattr(end, key) for _, end in runs], key) for key in KEYS)])
    return tables.rows(["", *KEYS.values()], lines)


KEYS = {
    "right": "right solutions, nats per token",
    "wrong": "wrong ones",
    "ranked": "right likelier per token, %",
    "ranked_whole": "right likelier as a whole, %",
}


def _plain(values: Sequence[float], key: str) -> str:
    scale, digits = (100, 1) if key.startswith("ranked") else (1, 3)
    return f"{scale * fmean(values):.{digits}f}".replace("-", MINUS)


def _with_interval(values: Sequence[float], key: str) -> str:
    scale, digits = (100, 1) if key.startswith("ranked") else (1, 3)
    return tables.interval([scale * value for value in values], digits, sign=False)


def exact_table(start: str, found: Mapping[str, Sequence[Record]], problems: int) -> str:
    """Final answers that are right, and solutions that come to a final answer at all."""
    before = exact.measured(start, problems)
    share = wilson(fmean(before.right), len(before.right))
    lines = [["before", _percent(share), f"{100 * fmean(before.answered):.1f}", ""]]
    for label, records in found.items():
        of_seed = [exact.measured(str(record.run.folder), problems) for record in records]
        right = [100 * fmean(one.right) for one in of_seed]
        answered = [100 * fmean(one.answered) for one in of_seed]
        gap = [value - 100 * share.mean for value in right]
        shares = (tables.interval(values, 1, sign=False) for values in (right, answered))
        lines.append([label, *shares, tables.interval(gap, 1)])
    note = (
        f"{len(before.right)} problems of GSM8K's test split not of the training pairs; greedy, 256 tokens at most. "
        "Brackets: before, Wilson's 95 % interval over the problems; after, a 95 % t interval over seeds."
    )
    return tables.rows(["", "right, %", "with a final answer, %", "right, less before"], lines) + f"\n\n{note}"


def _percent(share: Interval) -> str:
    assert share.low is not None
    assert share.high is not None
    return tables.shown(Interval(100 * share.mean, 100 * share.low, 100 * share.high, share.n), 1, sign=False)
