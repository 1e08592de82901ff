"""`dil report --compare A B`: what differs between two runs, and from which step on their curves do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.dynamics.style import series_lines
from dil_cli.errors import DilError
from dil_cli.report.build import check_writable
from dil_cli.report.experiment import flat, text
from dil_cli.report.figure import Figure
from dil_cli.report.more_tables import environment
from dil_cli.report.panels import STEPS, steps_panel
from dil_cli.report.record import read_rows
from dil_cli.report.runs import Run, read_run
from dil_cli.report.tables import Cell, Column, Table, plain

CURVES = ("loss", "logps/chosen", "logps/rejected", "grad_norm", "lr")
CURVES_OF_PROBE = ("probe/loss", "probe/logps/chosen", "probe/logps/rejected")

RELATIVE, ABSOLUTE = 1e-5, 1e-7
"""Differences within these are rounding: another order of float32 sums, as other threads or micro-batches give."""

ABSENT = "-"


def compare(a: Path, b: Path, out: Path | None) -> list[str]:
    """The differences as lines of text; with `out`, also a picture of both in it.

    Raises:
        DilError: when either is no whole run folder, or `out` cannot be written.
    """
    for path in (a, b):
        if not RunFolder(path).manifest.is_file():
            what = "holds no run" if path.is_dir() else "is a file" if path.exists() else "is not there"
            raise DilError(
                f"{path} {what}", f"dil report --compare {a} {b}", "name two run folders, as outputs/NAME-HASH"
            )
    runs = (read_run(a), read_run(b))
    rows = tuple(read_rows(RunFolder(run.folder).metrics) for run in runs)
    names = _names(a, b)
    lines = [f"A  {a}  {runs[0].hash}, {runs[0].status}", f"B  {b}  {runs[1].hash}, {runs[1].status}", ""]
    if runs[0].hash == runs[1].hash:
        lines += ["A and B have the same hash: the same config and data.", ""]
    lines += _section("config keys", [flat(run.config) for run in runs])
    lines += _section("environment", [environment(run) for run in runs])
    lines += _numbers(runs)
    lines += _parting(rows[0], rows[1])
    if out is not None:
        check_writable(out)
        figure = _picture(runs, rows, names)
        figure.save(out, ("png", "pdf"))
        lines += ["", f"picture {out / 'compare.png'}"]
    return lines


def first_difference(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], key: str
) -> tuple[int | None, int]:
    """The first step at which a metric of two records differs by more than rounding, and how many steps both have."""
    values = [{int(row["step"]): row[key] for row in rows if isinstance(row.get(key), int | float)} for rows in (a, b)]
    both = sorted(values[0].keys() & values[1].keys())
    for step in both:
        if not math.isclose(values[0][step], values[1][step], rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            return step, len(both)
    return None, len(both)


def _section(title: str, sides: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = [key for key in dict.fromkeys([*sides[0], *sides[1]]) if sides[0].get(key, ...) != sides[1].get(key, ...)]
    if not keys:
        return [f"{title}: no difference", ""]
    cells = [[text(side[key]) if key in side else ABSENT for side in sides] for key in keys]
    return _table(title, ("A", "B"), [(key, *pair) for key, pair in zip(keys, cells, strict=True)])


def _numbers(runs: Sequence[Run]) -> list[str]:
    """The final numbers of both, where both are done."""
    ends = [(run.result or {}).get("end", {}) for run in runs]
    keys = [key for key in dict.fromkeys([*ends[0], *ends[1]]) if key.count("/") < 3]
    rows = []
    for key in keys:
        a, b = (end.get(key) for end in ends)
        gap = f"{b - a:+.6g}" if a is not None and b is not None else ABSENT
        rows.append((key, *(ABSENT if value is None else f"{value:.6g}" for value in (a, b)), gap))
    return (
        _table("final numbers", ("A", "B", "B - A"), rows) if rows else ["final numbers: neither run is finished", ""]
    )


def _parting(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the curves part."""
    rows, firsts = [], []
    for key in (*CURVES, *CURVES_OF_PROBE):
        step, steps = first_difference(a, b, key)
        if steps:
            rows.append((key, str(steps), "never" if step is None else f"step {step}"))
            firsts += [] if step is None else [step]
    if not rows:
        return ["curves: no step was recorded in both"]
    summary = f"the curves part at step {min(firsts)}" if firsts else "the curves are the same up to rounding"
    table = _table(f"curves (more than {RELATIVE:g} of the value)", ("steps in both", "part at"), rows)
    return [*table, summary]


def _table(title: str, heads: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    columns = (Column("key", "", numeric=False), *(Column(head, head) for head in heads))
    cells = tuple(tuple(Cell(value) for value in row) for row in rows)
    return plain(Table("compare", title, columns, cells)).split("\n")


def _picture(runs: Sequence[Run], rows: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Figure:
    same = runs[0].loss == runs[1].loss
    looks = series_lines([(name if same else run.loss, name) for name, run in zip(names, runs, strict=True)])
    probes = {
        name: [[row for row in record if row.get("probe/logps/chosen") is not None]]
        for name, record in zip(names, rows, strict=True)
    }
    panels = tuple(steps_panel(metric, title, probes, looks) for metric, title in STEPS.items())
    return Figure("compare", "Two runs", "Change since step 0.", panels, looks)


def _names(a: Path, b: Path) -> tuple[str, str]:
    """What the picture calls them."""
    return f"A: {a.resolve().name}", f"B: {b.resolve().name}"
