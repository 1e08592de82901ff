"""The other tables of the page: pairs that lost likelihood, evaluations, costs, config, alarms, environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dil_cli.dynamics.statistics import Float64
from dil_cli.report.curves import lost_by_length
from dil_cli.report.estimates import Estimate, Metric
from dil_cli.report.experiment import NOT_IDENTITY, Experiment, Group, flat, text
from dil_cli.report.intervals import bootstrap, t_interval
from dil_cli.report.record import Record
from dil_cli.report.runs import Damaged, Run
from dil_cli.report.tables import WITH_INTERVAL, Cell, Column, Table, estimate_cell

NAMED_VALUES = 4
"""Values of a config key whose runs are named; of more, their runs are counted."""

SHARE = Metric("share", "share", "share of pairs", -1, percent=True)
SCORE = Metric("score", "score", "as the benchmark gives it", 1)


def lost_table(experiment: Experiment) -> Table:
    """Which share of pairs became less likely: chosen, rejected, both; chosen by quartile of length."""
    rows = []
    for group in experiment.groups:
        pairs = [record.pairs for record in group.records]
        cells = [Cell(group.label), _integer(len(pairs))]
        for side in ("chosen", "rejected"):
            cells.append(estimate_cell(_lost([getattr(pair, side) for pair in pairs]), SHARE))
        ranges, shares = lost_by_length(group)
        by_length = ", ".join(f"{r}: {100 * share:.0f} %" for r, share in zip(ranges, shares, strict=True))
        rows.append((*cells, Cell(by_length)))
    columns = (
        Column("group", "group", numeric=False),
        Column("seeds", "seeds"),
        Column("chosen_lost", "lost chosen likelihood", parts=WITH_INTERVAL),
        Column("rejected_lost", "lost rejected likelihood", parts=WITH_INTERVAL),
        Column("by_length", "lost chosen, by tokens of the response", numeric=False),
    )
    note = "Share of probe pairs, with the intervals of the final table: over seeds, or over the pairs of one seed."
    return Table("pairs", "Pairs that became less likely", columns, tuple(rows), note)


def _lost(changes: Sequence[Float64]) -> Estimate | None:
    """Share of the values below 0 of each seed; None where there are none, as demonstrations have no rejected side."""
    lost = [(values < 0).astype(np.float64) for values in changes if not np.isnan(values).any()]
    if not lost:
        return None
    if len(changes) > 1:
        return Estimate(t_interval([float(share.mean()) for share in lost]), "seeds")
    return Estimate(bootstrap(lost[0][:, None], lambda mean: mean[..., 0]), "pairs")


def eval_table(experiment: Experiment) -> Table | None:
    """Benchmark results of the runs' `eval/*.json`, a row a benchmark, metric and group; None when no run has any.

    A row is of evaluations under the same conditions; what differs in them has rows of its own.
    """
    kinds: dict[str, list[str]] = {}
    values: dict[tuple[str, str, str], dict[Group, list[float]]] = {}
    questions: dict[tuple[str, str], int | None] = {}
    for group in experiment.groups:
        for found in [found for record in group.records for found in record.evals]:
            kinds.setdefault(found.benchmark, [])
            if found.conditions not in kinds[found.benchmark]:
                kinds[found.benchmark].append(found.conditions)
            questions[found.benchmark, found.conditions] = found.questions
            for metric, value in found.metrics.items():
                by_group = values.setdefault((found.benchmark, metric, found.conditions), {})
                by_group.setdefault(group, []).append(value)
    if not kinds:
        return None
    rows = []
    for (benchmark, metric, kind), by_group in sorted(values.items(), key=lambda row: row[0][:2]):
        several = len(kinds[benchmark]) > 1
        name = f"{benchmark} #{kinds[benchmark].index(kind) + 1}" if several else benchmark
        asked = questions[benchmark, kind]
        for group, seeds in by_group.items():
            estimated = estimate_cell(Estimate(t_interval(seeds), "seeds"), SCORE)
            cells = [Cell(name), Cell(metric), Cell(group.label), Cell(group.reduction)]
            rows.append((*cells, Cell("-", (None,)) if asked is None else _integer(asked), estimated))
    columns = (
        Column("benchmark", "benchmark", numeric=False), Column("metric", "metric", numeric=False),
        Column("group", "group", numeric=False), Column("reduction", "loss.reduction", numeric=False),
        Column("questions", "questions"), Column("score", "score", parts=WITH_INTERVAL),
    )  # fmt: skip
    note = (
        "questions: pairs, prompts or questions behind the number. Score: mean over the seeds that were evaluated, "
        "with a 95 % t interval where there are several."
    )
    if any(len(those) > 1 for those in kinds.values()):
        note += (
            " #1, #2: evaluations of one name that differ in number or text of the questions, judge, opponent or how "
            "they were asked; they are neither averaged nor to be compared."
        )
    return Table("evaluations", "Benchmark results", columns, tuple(rows), note)


def cost_table(records: Sequence[Record], root: Path) -> Table:
    """What each run took."""
    rows = []
    for record in records:
        run = record.run
        seconds = (run.result or {}).get("train_seconds")
        compute = f"{run.manifest.get('device', '-')}, {run.manifest.get('compute', '-')}"
        rows.append(
            (
                Cell(shown(run.folder, root)), Cell(run.loss), _integer(run.seed), _integer(record.end["step"]),
                _number(seconds, 0), _number(record.pairs_per_s, 1), _number(record.memory_gb, 2), Cell(compute),
            )
        )  # fmt: skip
    columns = (
        Column("run", "run", numeric=False), Column("loss", "loss", numeric=False), Column("seed", "seed"),
        Column("steps", "steps"), Column("train_seconds", "seconds"), Column("pairs_per_s", "pairs/s"),
        Column("memory_gb", "peak GB"), Column("device", "device", numeric=False),
    )  # fmt: skip
    note = (
        "seconds: training and measuring; pairs/s: median over the steps; peak GB: of the accelerator or the process."
    )
    return Table("costs", "Time, throughput and memory of each run", columns, tuple(rows), note)


def config_table(runs: Sequence[Run], root: Path) -> Table | None:
    """The config keys that differ between the runs, a row each; None when none does."""
    configs = [flat(run.config) for run in runs]
    skipped = {"output", "name"}
    keys = sorted(
        key
        for key in set().union(*configs)
        if key not in skipped and len({repr(config.get(key)) for config in configs}) > 1
    )
    if not keys:
        return None
    rows = []
    for key in keys:
        by_value: dict[str, list[str]] = {}
        for run, config in zip(runs, configs, strict=True):
            value = text(config[key]) if key in config else "not set"
            by_value.setdefault(value, []).append(shown(run.folder, root))
        ignored = any(key == other or key.startswith(f"{other}.") for other in NOT_IDENTITY)
        few = len(by_value) <= NAMED_VALUES
        counts = {value: _runs(names) if few else f"{len(names)}" for value, names in by_value.items()}
        values = "; ".join(f"{value} ({count})" for value, count in counts.items())
        rows.append((Cell(key), Cell("no" if ignored else "yes"), Cell(values)))
    columns = (
        Column("key", "config key", numeric=False),
        Column("in_hash", "in the run's hash", numeric=False),
        Column("values", "values and runs", numeric=False),
    )
    return Table(
        "config",
        "What differs between the runs",
        columns,
        tuple(rows),
        "In brackets the run, or how many runs. All other keys are the same.",
    )


def alarm_table(records: Sequence[Record], root: Path) -> Table | None:
    """The alarms that were raised; None when none was."""
    rows = [
        (
            Cell(shown(record.run.folder, root)), Cell(record.run.loss), _integer(record.run.seed),
            _integer(alarm["step"]), Cell(str(alarm["name"])), Cell(str(alarm["message"])),
        )
        for record in records
        for alarm in (record.run.result or {}).get("alarms", [])
    ]  # fmt: skip
    if not rows:
        return None
    columns = (
        Column("run", "run", numeric=False), Column("loss", "loss", numeric=False), Column("seed", "seed"),
        Column("step", "step"), Column("alarm", "alarm", numeric=False),
        Column("message", "what it said", numeric=False),
    )  # fmt: skip
    return Table(
        "alarms",
        "Alarms that were raised",
        columns,
        tuple(rows),
        "A run goes on after an alarm; these are probe.alarms.* crossed.",
    )


def environment_table(runs: Sequence[Run], root: Path) -> Table:
    """What the numbers were computed with, each value with the runs that had it."""
    facts: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for name, value in environment(run).items():
            facts.setdefault(name, {}).setdefault(value, []).append(shown(run.folder, root))
    rows = []
    for name, values in facts.items():
        told = list(values) if len(values) == 1 else [f"{value} ({_runs(names)})" for value, names in values.items()]
        rows.append((Cell(name), Cell("; ".join(told))))
    columns = (Column("name", "what", numeric=False), Column("value", "value", numeric=False))
    return Table("environment", "Versions, machine, weights and data", columns, tuple(rows))


def environment(run: Run) -> dict[str, str]:
    """Versions, revision, machine, weights and data of one run."""
    there = run.manifest.get("environment", {})
    facts = {"dil": there.get("dil"), "revision": there.get("git") or "not recorded", "python": there.get("python")}
    facts |= {"platform": there.get("platform"), "device": run.manifest.get("device")}
    facts |= {"compute": run.manifest.get("compute")}
    facts |= dict(there.get("packages", {}))
    facts["model weights"] = str(run.manifest.get("model", {}).get("weights_sha256", "-"))[:12]
    facts["data"] = str(run.manifest.get("data_sha256", "-"))[:12]
    return {name: "-" if value is None else str(value) for name, value in facts.items()}


def left_out_table(
    runs: Sequence[Run], damaged: Sequence[Damaged], records: Sequence[Record], root: Path
) -> Table | None:
    """Runs that the numbers do not hold, and files that were passed over, with the reason; None when there is none."""
    rows = [(shown(item.folder, root), item.reason) for item in damaged]
    for run in runs:
        if run.status == "failed":
            failure = run.failure or {}
            rows.append(
                (shown(run.folder, root), f"failed at step {failure.get('step', '?')}: {failure.get('what', '?')}")
            )
        elif run.status == "unfinished":
            rows.append((shown(run.folder, root), f"unfinished; {run.manifest.get('steps', '?')} steps were planned"))
    rows += [(shown(record.run.folder, root), note) for record in records for note in record.notes]
    if not rows:
        return None
    columns = (Column("folder", "folder", numeric=False), Column("reason", "why it is left out", numeric=False))
    cells = tuple((Cell(folder), Cell(reason)) for folder, reason in sorted(rows))
    return Table("left_out", "Folders and files that are left out", columns, cells)


def common_root(folders: Sequence[Path]) -> Path:
    """The folder that all run folders lie below: names are shown relative to it, so that no machine's path appears."""
    return Path(os.path.commonpath([folder.resolve().parent for folder in folders]))


def shown(folder: Path, root: Path) -> str:
    """A run folder's name on the page."""
    return Path(os.path.relpath(folder.resolve(), root)).as_posix()


def _runs(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} runs"


def _integer(value: int) -> Cell:
    return Cell(str(value), (value,))


def _number(value: float | None, digits: int) -> Cell:
    return Cell("-", (None,)) if value is None else Cell(f"{value:,.{digits}f}", (value,))
