"""A report from its run folders to its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dil_cli import __version__
from dil_cli.errors import DilError
from dil_cli.report import more_tables
from dil_cli.report.answer import Answer, answer
from dil_cli.report.experiment import Experiment, arrange, short
from dil_cli.report.figure import Figure
from dil_cli.report.numerics import numerics_table
from dil_cli.report.page import Section, page
from dil_cli.report.panels import figures
from dil_cli.report.record import Record, read_records
from dil_cli.report.runs import Damaged, Run, find_runs
from dil_cli.report.sweep import Sweep, is_sweep, read_sweep
from dil_cli.report.tables import FORMATS, Table, difference_table, final_table

FIGURE_FORMATS = ("png", "pdf")
ALL_FORMATS = ("html", *FIGURE_FORMATS, *FORMATS)


@dataclass(frozen=True, eq=False)
class Material:
    """Everything that was read."""

    runs: list[Run]
    records: list[Record]
    damaged: list[Damaged]
    sweeps: list[Sweep]
    experiment: Experiment
    root: Path


@dataclass(frozen=True, eq=False)
class Report:
    """What was written, and what the terminal says of it."""

    folder: Path
    answer: Answer
    finished: int
    left_out: list[str]


def build(paths: Sequence[Path], out: Path | None, baseline: str | None, formats: Sequence[str]) -> Report:
    """Read the runs below `paths` and write their report.

    Raises:
        DilError: when there is no finished run, no such baseline, or the folder cannot be written.
    """
    material = read(paths, baseline)
    name = _name(paths, material.sweeps)
    folder = out or Path("outputs") / "reports" / f"{name}-{_hash(material.runs)}"
    check_writable(folder)
    tables = _tables(material)
    drawn = figures(material.experiment)
    answered = answer(
        material.experiment, [sweep.question for sweep in material.sweeps if sweep.question], material.runs
    )
    try:
        _write_tables(folder, tables, [ending for ending in formats if ending in FORMATS])
        _write_figures(folder, drawn, tuple(ending for ending in formats if ending in FIGURE_FORMATS))
        if "html" in formats:
            text = page(name, _subtitle(material), answered, _sections(material, tables, drawn))
            (folder / "index.html").write_text(text, encoding="utf-8")
    except OSError as error:
        what = f"the report cannot be written: {error.strerror}"
        raise DilError(what, str(error.filename or folder), "--out report") from error
    left_out = tables.get("left_out")
    lines = [f"{row[0].text}: {row[1].text}" for row in left_out.rows] if left_out else []
    return Report(folder, answered, len(material.records), lines)


def read(paths: Sequence[Path], baseline: str | None) -> Material:
    """The finished runs below `paths`, in groups.

    Raises:
        DilError: when there is none, or no such baseline.
    """
    runs, damaged = find_runs(paths)
    records, more = read_records(runs)
    if not records:
        why = f": {more[0].folder.name}: {more[0].reason}" if more else ""
        raise DilError(
            f"none of {len(runs)} runs is finished and whole{why}", " ".join(map(str, paths)),
            "finish them: the command that began a run starts it again",
        )  # fmt: skip
    sweeps = [read_sweep(path) for path in paths if is_sweep(path)]
    folders = [*(run.folder for run in runs), *(item.folder for item in damaged)]
    experiment = arrange(records, sweeps, baseline)
    return Material(runs, records, [*damaged, *more], sweeps, experiment, more_tables.common_root(folders))


def check_writable(folder: Path) -> None:
    """Make the folder.

    Raises:
        DilError: when it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise DilError(f"no report can be written to {folder}", f"--out {folder}", "--out report")


def _tables(material: Material) -> dict[str, Table]:
    root, experiment, records = material.root, material.experiment, material.records
    tables = (
        final_table(experiment),
        difference_table(experiment),
        more_tables.lost_table(experiment),
        numerics_table(experiment),
        more_tables.eval_table(experiment),
        more_tables.cost_table(records, root),
        more_tables.config_table([record.run for record in records], root),
        more_tables.alarm_table(records, root),
        more_tables.environment_table([record.run for record in records], root),
        more_tables.left_out_table(material.runs, material.damaged, records, root),
    )
    return {table.name: table for table in tables if table is not None}


def _sections(material: Material, tables: dict[str, Table], drawn: Sequence[Figure]) -> list[Section]:
    by_name = {figure.name: figure for figure in drawn}

    def section(ident: str, title: str, parts: Sequence[str], *paragraphs: str) -> Section:
        there = [tables.get(part) or by_name.get(part.removeprefix("figure:")) for part in parts]
        return Section(ident, title, paragraphs, tuple(part for part in there if part is not None))

    x = material.experiment.x
    sections = [
        section("dynamics", "Likelihoods over training", ["figure:dynamics"]),
        section("numbers", "Final numbers", ["final", "differences", "figure:final"]),
        section("pair-by-pair", "Pair by pair", ["figure:pairs", "pairs"]),
        section("across", f"Over {short(x) if x else ''}", ["figure:across"]),
        section("numerics", "Guard and gradient", ["numerics", "figure:numerics"]),
        section("evals", "Evaluations", ["evaluations"]),
        section("costs", "Costs", ["costs"]),
        section("config", "Config", ["config"], *([] if "config" in tables else ["No config key differs."])),
        section("alarms", "Alarms", ["alarms"], *([] if "alarms" in tables else ["No alarm was raised."])),
        section("environment", "Environment and citing", ["environment"], *_citing(material)),
        section("left-out", "Left out", ["left_out"], *([] if "left_out" in tables else ["No run was left out."])),
    ]
    return [one for one in sections if one.parts or one.paragraphs]


def _citing(material: Material) -> list[str]:
    hashes = [record.run.hash for record in material.records]
    listed = ", ".join(hashes) if len(hashes) <= 12 else f"{', '.join(hashes[:12])} and {len(hashes) - 12} more"
    return [
        "To cite a number, give the metric, the group with its loss.reduction, the interval with what it is over, the "
        "revision and versions below, and the runs' hashes, which cover each run's config and data: " + listed + ".",
        "Method: On a Connection Between Imitation Learning and RLHF, arXiv 2503.05079. "
        f"Computed by dil {__version__}; tables/*.csv hold the numbers in full precision.",
    ]


def _subtitle(material: Material) -> str:
    experiment = material.experiment
    seeds = sorted({record.run.seed for record in material.records})
    span = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
    pairs = sorted({len(record.pairs.row) for record in material.records})
    left = (
        len(material.runs)
        - len(material.records)
        + sum(item.folder not in _folders(material) for item in material.damaged)
    )
    return (
        f"{len(material.records)} finished runs in {len(experiment.groups)} groups, {span}, measured on "
        f"{' or '.join(map(str, pairs))} held-out pairs"
        + (f"; {left} left out, listed at the end" if left else "")
        + "."
    )


def _folders(material: Material) -> set[Path]:
    return {run.folder for run in material.runs}


def _name(paths: Sequence[Path], sweeps: Sequence[Sweep]) -> str:
    if len(sweeps) == 1 and len(paths) == 1:
        return sweeps[0].name
    return (paths[0].resolve().name if len(paths) == 1 else "") or "runs"


def _hash(runs: Sequence[Run]) -> str:
    return hashlib.sha256(" ".join(sorted(run.hash for run in runs)).encode()).hexdigest()[:8]


TABLE_NAMES = (
    "final", "differences", "pairs", "numerics", "evaluations", "costs", "config", "alarms", "environment", "left_out",
)  # fmt: skip
FIGURE_NAMES = ("dynamics", "final", "pairs", "across", "numerics")


def _write_tables(folder: Path, tables: dict[str, Table], endings: Sequence[str]) -> None:
    for name in TABLE_NAMES:
        for ending, render in FORMATS.items():
            path = folder / "tables" / f"{name}.{ending}"
            path.unlink(missing_ok=True)  # of an earlier report, which may have had more
            if ending in endings and name in tables:
                path.parent.mkdir(exist_ok=True)
                path.write_text(render(tables[name]), encoding="utf-8")


def _write_figures(folder: Path, drawn: Sequence[Figure], endings: tuple[str, ...]) -> None:
    for name in FIGURE_NAMES:
        for ending in FIGURE_FORMATS:
            (folder / "figures" / f"{name}.{ending}").unlink(missing_ok=True)
    if endings:
        (folder / "figures").mkdir(exist_ok=True)
    for figure in drawn:
        figure.save(folder / "figures", endings)
