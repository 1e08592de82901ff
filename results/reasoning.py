"""Is reasoning kept: right and wrong GSM8K solutions before and after alignment. No runs of its own. P probe pairs."""

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
from dil_cli.report.panels import figures
from dil_cli.report.record import Record
from dil_cli.report.tables import MINUS
from results import arms, dynamics, tables
from results.chain import Chain
from results.compared import arranged
from results.page import Page

CHAINS = tuple(Chain(arm, (dynamics.EXPERIMENT,)) for arm in (*arms.DIL, arms.DPO, arms.SIMPO))


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


def blocks() -> Mapping[str, str]:
    """Every made block of the page."""
    found = {chain.arm.label: [measured(record) for record in chain.records()] for chain in CHAINS}
    return {"cost": tables.cost(CHAINS), "solutions": table(found), "cells": tables.cells(CHAINS)}


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


def draw(folder: Path) -> None:
    """reasoning.png: pair by pair, what was lost and gained."""
    experiment = arranged([record for chain in CHAINS for record in chain.records()], "loss=dpo", None)
    (found,) = (figure for figure in figures(experiment) if figure.name == "pairs")
    figure: Figure = dataclasses.replace(found, name="reasoning")
    figure.save(folder, ("png",))


PAGE = Page(
    "reasoning",
    "Are right solutions kept likely, and likelier than wrong ones?",
    CHAINS,
    blocks,
    draw,
)
