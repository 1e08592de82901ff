"""The table at the end of a sweep: a row for each setting, the mean over its seeds and its 95 % interval."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dil_cli.report import tables
from dil_cli.report.intervals import Interval, t_interval
from dil_cli.report.tables import Cell, Column
from dil_cli.sweep.plan import Job

if TYPE_CHECKING:
    from rich.table import Table

METRICS = {
    "delta/chosen": "chosen",
    "delta/rejected": "rejected",
    "delta/margin": "margin",
    "accuracy_mean": "margin grew",
    "chosen_cost": "chosen_cost",
}
"""Of the last probe measurement, with their headings."""
CAPTION = (
    "chosen, rejected, margin: change since step 0, nats per token; margin grew: part of the pairs, per token; "
    "chosen_cost: chosen likelihood lost per margin gained. Mean over seeds +- 95 % interval."
)


@dataclass
class Group:
    """The runs of one setting, which differ in their seed only."""

    setting: tuple[tuple[str, str], ...]
    reduction: str
    jobs: list[Job] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`3/3 done`, or what became of the others."""
        states = [job.state for job in self.jobs]
        done = f"{states.count('done')}/{len(states)} done"
        others = [f"{states.count(state)} {state}" for state in ("failed", "stopped", "to do") if state in states]
        return ", ".join([done, *others])

    def intervals(self) -> dict[str, Interval | None]:
        """Of every metric; None where no finished run has it."""
        return {name: t_interval(self.values[name]) if self.values.get(name) else None for name in METRICS}


def group_jobs(jobs: Sequence[Job], swept: Sequence[str]) -> list[Group]:
    """Jobs by all swept keys but the seed, in the order of the sweep; numbers come from their `result.json`."""
    groups: dict[tuple[tuple[str, str], ...], Group] = {}
    for job in jobs:
        values = dict(word.split("=", 1) for word in job.overrides)
        setting = tuple((key, values[key]) for key in swept if key != "seed" and key in values)
        group = groups.setdefault(setting, Group(setting, job.config.loss.reduction.value))
        group.jobs.append(job)
        for name, value in _end(job).items():
            group.values.setdefault(name, []).append(value)
    return list(groups.values())


def as_table(groups: Sequence[Group]) -> tables.Table:
    """The table in the form that is written: in CSV all digits and both ends of every interval."""
    keys = [key for key, _ in groups[0].setting]
    columns = (
        *(Column(key, key.rpartition(".")[2], numeric=False) for key in keys),
        Column("reduction", "reduction", numeric=False),
        Column("seeds", "seeds"),
        *(Column(name, label, parts=("", "/low", "/high")) for name, label in METRICS.items()),
        Column("status", "status", numeric=False),
        Column("folders", "runs", numeric=False),
    )
    rows = tuple(
        (
            *(Cell(value) for _, value in group.setting),
            Cell(group.reduction),
            Cell(str(_seeds(group))),
            *(_interval(name, interval) for name, interval in group.intervals().items()),
            Cell(group.status),
            Cell(_folders(group), (" ".join(job.folder.path.name for job in group.jobs),)),
        )
        for group in groups
    )
    return tables.Table("table", "Held-out pairs at the end of each run", columns, rows, CAPTION)


def rich_table(table: tables.Table) -> Table:
    """For a person at a terminal."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.ASCII2, show_edge=False, pad_edge=False)
    for column in table.columns:
        shown.add_column(column.label, justify="right" if column.numeric else "left")
    for row in table.rows:
        shown.add_row(*(cell.text for cell in row))
    return shown


def _seeds(group: Group) -> int:
    return max((len(values) for values in group.values.values()), default=0)


def _interval(name: str, interval: Interval | None) -> Cell:
    """`-0.129 +- 0.014`."""
    if interval is None:
        return Cell("-", (None, None, None))
    sign = "+" if name.startswith("delta/") else ""
    digits = 3 if sign else 2
    mean = f"{interval.mean:{sign}.{digits}f}"
    half = "" if interval.high is None else f" +- {interval.high - interval.mean:.{digits}f}"
    return Cell(mean + half, (interval.mean, interval.low, interval.high))


def _folders(group: Group) -> str:
    """The folders of a setting; their hashes alone after the first."""
    names = [job.folder.path.name for job in group.jobs]
    stem = names[0].rpartition("-")[0]
    same = all(name.rpartition("-")[0] == stem for name in names)
    return (
        f"{stem}-{{{','.join(name.rpartition('-')[2] for name in names)}}}"
        if same and len(names) > 1
        else " ".join(names)
    )


def _end(job: Job) -> Mapping[str, float]:
    """The metrics of the job's last measurement; nothing while it is not finished."""
    if not job.finished:
        return {}
    end = json.loads(job.folder.result.read_text(encoding="utf-8"))["end"]
    return {name: end[f"probe/{name}"] for name in METRICS if end.get(f"probe/{name}") is not None}
