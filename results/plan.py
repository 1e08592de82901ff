"""What the pages are made of and what they cost, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dil_cli.errors import DilError
from results import rates, tables
from results.chain import Chain
from results.grid import Grid, NotRun, seconds_of
from results.page import Page


@dataclass(frozen=True)
class Share:
    """Runs of a page that no page before it has."""

    runs: int
    done: int
    seconds: float


def plan(pages: Sequence[Page]) -> str:
    """A table: runs, how many are done, hours on 2 idle cores, with what is measured beside the runs' own record.

    Runs that pages share count in the first. What a page's runs start from may be missing before the page is prepared.
    """
    seen: set[str] = set()
    lines, notes, total = [], [], 0.0
    for page in pages:
        try:
            share = _share(page.chains, seen)
        except DilError as error:
            lines.append([f"`{page.name}`", page.question, "?", "0", "?"])
            notes.append(f"`{page.name}` is planned when it is run: {error.what.partition(';')[0]}.")
            continue
        seconds = share.seconds + page.measuring()
        total += seconds
        lines.append([f"`{page.name}`", page.question, str(share.runs), str(share.done), _hours(seconds)])
    table = tables.rows(["page", "question", "runs", "done", "hours on 2 cores"], lines, text=2)
    notes.append(f"{_hours(total)} hours in all; the choice of rates may call for a run or two more an arm.")
    return "\n".join([table, "", *notes])


def _share(chains: Sequence[Chain], seen: set[str]) -> Share:
    jobs = {job.hash: job for chain in chains for grid in _grids(chain) for job in grid.jobs() if job.hash not in seen}
    seen.update(jobs)
    return Share(len(jobs), sum(job.finished for job in jobs.values()), sum(map(seconds_of, jobs.values())))


def _grids(chain: Chain) -> list[Grid]:
    """Its grids; as long as no rate is chosen they stand at the model's own."""
    first = [] if chain.rate else [rates.grid(chain.arm, chain.words)]
    try:
        return [*first, *chain.grids()]
    except NotRun:
        return [*first, *chain.at(f"{rates.KEY}=1")]


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f}"
