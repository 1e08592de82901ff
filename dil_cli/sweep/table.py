"""The table at the end of a sweep: a row for each setting, the mean over its seeds and its 95 % interval."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dil_cli.report.intervals import Interval, t_interval
from dil_cli.sweep.plan import Job

if TYPE_CHECKING:
    from rich.table import Table

METRICS = {
    "delta/chosen": "chosen",
    "delta/rejected": "rejected",
    "delta/margin": "margin",
    "accuracy": "margin grew",
    "chosen_cost": "chosen_cost",
}
"""Of the last probe measurement, with their headings."""
CAPTION = (
    "Held-out pairs at the end of each run. chosen, rejected, margin: change since step 0, nats per token; margin "
    "grew: part of the pairs; chosen_cost: chosen likelihood lost per margin gained. Mean over seeds +- 95 % interval."
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


def rich_table(groups: Sequence[Group]) -> Table:
    """For a person at a terminal."""
    from rich import box
    from rich.table import Table

    head, rows = _text(groups)
    table = Table(box=box.ASCII2, show_edge=False, pad_edge=False)
    for name in head:
        table.add_column(name, justify="right" if name in {"seeds", *METRICS.values()} else "left")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(groups: Sequence[Group]) -> str:
    """For a README or an issue."""
    head, rows = _text(groups)
    lines = [head, ["---"] * len(head), *rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{body}\n\n{CAPTION}\n"


def as_csv(groups: Sequence[Group]) -> str:
    """For a program: all digits, mean and both ends of every interval, and the run folders."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    metrics = [f"{name}{end}" for name in METRICS for end in ("", "/low", "/high")]
    writer.writerow([*_keys(groups), "reduction", "seeds", *metrics, "status", "folders"])
    for group in groups:
        cells: list[Any] = []
        for interval in group.intervals().values():
            cells += [None] * 3 if interval is None else [interval.mean, interval.low, interval.high]
        folders = " ".join(job.folder.path.name for job in group.jobs)
        writer.writerow([*_setting(group), group.reduction, _seeds(group), *cells, group.status, folders])
    return out.getvalue()


def _text(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    head = [*(key.rpartition(".")[2] for key in _keys(groups)), "reduction", "seeds"]
    head += [*METRICS.values(), "status", "runs"]
    rows = []
    for group in groups:
        numbers = [_number(name, interval) for name, interval in group.intervals().items()]
        rows.append([*_setting(group), group.reduction, str(_seeds(group)), *numbers, group.status, _folders(group)])
    return head, rows


def _keys(groups: Sequence[Group]) -> list[str]:
    return [key for key, _ in groups[0].setting]


def _setting(group: Group) -> list[str]:
    return [value for _, value in group.setting]


def _seeds(group: Group) -> int:
    return max((len(values) for values in group.values.values()), default=0)


def _number(name: str, interval: Interval | None) -> str:
    if interval is None:
        return "-"
    sign = "+" if name.startswith("delta/") else ""
    digits = 3 if sign else 2
    mean = f"{interval.mean:{sign}.{digits}f}"
    return mean if interval.high is None else f"{mean} +- {interval.high - interval.mean:.{digits}f}"


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
