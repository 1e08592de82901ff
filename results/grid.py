"""What `dil sweep` runs for a page, found again by the hashes of its runs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import yaml

from dil_cli.config.compose import compose
from dil_cli.config.paths import conf_dir
from dil_cli.config.schema import TrainConfig
from dil_cli.report.record import Record, read_record
from dil_cli.report.runs import read_run
from dil_cli.sweep.plan import Job, plan

TRAINED, MEASURED = 18.0, 55.0
"""Pairs of the bundled data a second on 2 idle cores, tiny model (docs/experiments.md)."""
START = 4.0
"""Seconds of a run beside its pairs, on 2 cores."""


class NotRun(Exception):
    """Runs that a page is made of are not there."""


@dataclass(frozen=True)
class Arm:
    """A method as the pages compare it: its name in tables, and the words that choose it."""

    label: str
    words: tuple[str, ...]

    @property
    def loss(self) -> str:
        """The name of its loss."""
        return self.words[0].removeprefix("loss=")


@dataclass(frozen=True)
class Grid:
    """One `dil sweep`: an experiment of conf/experiment/results with its own axes, and words for all of its runs."""

    experiment: str
    words: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """As a reader gives it."""
        return " ".join(["dil sweep", f"experiment={self.experiment}", *self.words])

    def cell(self, words: Sequence[str]) -> str:
        """The command of one of its runs."""
        return " ".join(["dil train", f"experiment={self.experiment}", *self.words, *words])

    def cells(self) -> list[tuple[str, ...]]:
        """The words of each run, in the order of the sweep; words of the grid take the place of an axis."""
        path = conf_dir() / "experiment" / f"{self.experiment}.yaml"
        params: dict[str, object] = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["sweeper"]["params"]
        given = {word.partition("=")[0] for word in self.words}
        axes = [[f"{key}={v}" for v in str(values).split(",")] for key, values in params.items() if key not in given]
        return list(itertools.product(*axes))

    def jobs(self) -> list[Job]:
        """Its runs, with their folders, done or not."""
        return list(_jobs(self))

    def records(self) -> list[Record]:
        """What its runs measured.

        Raises:
            NotRun: when one is missing.
        """
        jobs = self.jobs()
        missing = [job for job in jobs if not job.finished]
        if missing:
            raise NotRun(f"{len(missing)} of {len(jobs)} runs are missing: {self.command}")
        return [read_record(read_run(job.folder.path)) for job in jobs]


@cache
def _jobs(grid: Grid) -> tuple[Job, ...]:
    cells = grid.cells()
    return tuple(plan([(cell, _config(grid, cell)) for cell in cells], [word.partition("=")[0] for word in cells[0]]))


def _config(grid: Grid, cell: Sequence[str]) -> TrainConfig:
    """Composed but for the seed: nothing else in a config depends on it, and composing is most of the work."""
    seeds = [int(word.removeprefix("seed=")) for word in cell if word.startswith("seed=")]
    config = _composed(grid, *(word for word in cell if not word.startswith("seed=")))
    return dataclasses.replace(config, seed=seeds[0]) if seeds else config


@cache
def _composed(grid: Grid, *cell: str) -> TrainConfig:
    config = compose("train", [f"experiment={grid.experiment}", *grid.words, *cell])
    assert isinstance(config, TrainConfig)
    return config


def seconds_of(job: Job) -> float:
    """Of one run: pairs trained on, and measurements after step 0, whose numbers are the reference's."""
    return job.work / TRAINED + job.config.probe.times * job.config.probe.pairs / MEASURED + START
