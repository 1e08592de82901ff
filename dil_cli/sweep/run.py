"""`dil sweep`, from a checked list of jobs to the table at its end. Knows no Hydra: it is given a way to launch."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dil_cli.config.schema import TrainConfig
from dil_cli.errors import DilError, RunFailed
from dil_cli.files import write_json
from dil_cli.report.tables import Table, csv_text, markdown
from dil_cli.sweep.folder import About, SweepFolder
from dil_cli.sweep.plan import Job, plan
from dil_cli.sweep.table import as_table, group_jobs, rich_table
from dil_cli.tracking.console import facts_once
from dil_cli.tracking.summary import clock

Outcome = int | BaseException
"""A job's exit code, or what it ended in instead."""


@dataclass(frozen=True)
class Launch:
    """How jobs are started: `start(jobs)` returns when they have ended, one outcome each, in their order.

    `one_by_one` says that they share this process, so that they may as well be given one at a time.
    """

    start: Callable[[Sequence[Job]], Sequence[Outcome]]
    one_by_one: bool
    name: str


def run_sweep(
    configs: Sequence[tuple[tuple[str, ...], TrainConfig]], about: About, launch: Callable[[str], Launch], dry_run: bool
) -> None:
    """Check all jobs, run those that are not done, and write the table.

    Args:
        configs: overrides and config of every job.
        about: what the experiment says of itself.
        launch: how to start jobs of the sweep with the given name.
        dry_run: only list them.

    Raises:
        DilError: when a job cannot start; none has then.
        RunFailed: when a job did not end well; the others have run.
    """
    jobs = plan(configs, about.swept)
    folder = SweepFolder.of(about, jobs)
    todo = [job for job in jobs if not job.finished]
    same = len(configs) - len(jobs)
    print(f"{folder.path.name}: {_count(len(jobs))}, {len(jobs) - len(todo)} done, {len(todo)} to do")
    if same:
        print(f"{same} more of the combinations give a run that is there already, which is run once")
    if dry_run:
        _list(jobs)
        return
    folder.write(about, jobs)
    with facts_once():
        failures = _run_all(jobs, todo, launch(folder.path.name))
    table = as_table(group_jobs(jobs, about.swept))
    folder.write_text("table.csv", csv_text(table))
    folder.write_text("table.md", markdown(table))
    _show(table, folder)
    unfinished = [job for job in jobs if not job.finished]
    if unfinished:
        first = unfinished[0]
        reason = failures.get(first.hash) or _recorded(first) or "it did not end"
        raise RunFailed(
            f"{len(unfinished)} of {_count(len(jobs))} are not done; {first.label}: {reason}",
            where=str(first.folder.path),
            fix="mend it and give the same command again: what is done is kept",
        )


def _run_all(jobs: Sequence[Job], todo: Sequence[Job], launch: Launch) -> dict[str, str]:
    """Start what is to do, and again one by one what a launcher lost; returns why jobs failed, by hash."""
    failures: dict[str, str] = {}
    batches = [[job] for job in todo] if launch.one_by_one else [list(todo)] if todo else []
    while batches:
        batch = batches.pop(0)
        if launch.one_by_one:
            print(f"\n== {_count(len(jobs))}, now number {jobs.index(batch[0]) + 1}: {batch[0].label}", end="")
            print(f" {_left(jobs)}", flush=True)
        try:
            outcomes = launch.start(batch)
        except Exception as error:  # a worker was killed, and joblib or submitit gave the whole batch up
            if not launch.one_by_one and not any(job.folder.path.is_dir() for job in batch):
                raise DilError(
                    f"the {launch.name} launcher starts nothing here: {error}", f"hydra/launcher={launch.name}",
                    "hydra/launcher=basic, or run it where the launcher's commands are",
                ) from error  # fmt: skip
            lost = [job for job in batch if job.state in {"to do", "stopped"}]
            print(f"the {launch.name} launcher stopped ({type(error).__name__}: {error})", file=sys.stderr, flush=True)
            if len(batch) > 1:
                batches += [[job] for job in lost]
            else:
                failures[batch[0].hash] = f"its process ended ({type(error).__name__})"
            continue
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                failures[job.hash] = _note_crash(job, outcome)
            elif outcome:
                failures[job.hash] = _recorded(job) or f"it ended with exit code {outcome}, its error stands above"
        gc.collect()  # the last job's model, before the next one is loaded
    return failures


def _note_crash(job: Job, error: BaseException) -> str:
    """Say what no one foresaw, and keep it with the run."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    print(f"error: {reason}\nwhere: {job.label}", file=sys.stderr, flush=True)
    trace = "".join(traceback.format_exception(error))
    if os.environ.get("DIL_TRACEBACK"):
        print(trace, file=sys.stderr)
    if job.folder.path.is_dir():
        write_json(job.folder.failure, {"what": reason, "fix": "", "traceback": trace.splitlines()})
    return reason


def _recorded(job: Job) -> str | None:
    """The reason that an earlier attempt left in the run's folder."""
    if not job.folder.failure.is_file():
        return None
    return str(json.loads(job.folder.failure.read_text(encoding="utf-8")).get("what"))


def _list(jobs: Sequence[Job]) -> None:
    """`--dry-run`: every job, whether it is done, and what the rest will take."""
    states = [job.state for job in jobs]
    width = max(map(len, states))
    for job, state in zip(jobs, states, strict=True):
        print(f"  {state.ljust(width)}  {job.label}  {job.folder.path.name}")
    if any(state != "done" for state in states):
        print(_left(jobs).strip("()") or "none of them is done, so nothing is known of the time they take")


def _left(jobs: Sequence[Job]) -> str:
    """`(about 12:30 left)`, by the training time of those that are done for each of their pairs; else nothing."""
    done = [job for job in jobs if job.finished]
    work = sum(job.work for job in done)
    rest = sum(job.work for job in jobs) - work
    if not work or not rest:
        return ""
    return f"(about {clock(sum(_seconds(done)) * rest / work)} of training left)"


def _seconds(done: Sequence[Job]) -> Iterator[float]:
    for job in done:
        yield float(json.loads(job.folder.result.read_text(encoding="utf-8"))["train_seconds"])


def _show(table: Table, folder: SweepFolder) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(f"\n{table.title}")
    console.print(rich_table(table))
    console.print(table.note, soft_wrap=True)
    print(f"sweep  {folder.path}\nreport dil report {os.path.relpath(folder.path)}", flush=True)


def _count(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"
