"""A method on a data set: its learning rate is chosen on validation questions, then its grids are run at that rate."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dil_cli.report.record import Record
from results import rates
from results.grid import Arm, Grid

LOGS = Path("outputs/results")
COMPOSING = threading.Lock()
"""Hydra composes one config of a process at a time."""


@dataclass(frozen=True)
class Chain:
    """What is run for one arm, in order.

    `words` are those of the page, the data set's for one, `test` those of the grids alone, which say where the test
    pairs are. `rate` is a rate that is given and not chosen.
    """

    arm: Arm
    experiments: tuple[str, ...]
    words: tuple[str, ...] = ()
    rate: str | None = None
    test: tuple[str, ...] = ()

    def rates(self) -> list[rates.Rate]:
        """What validation measured, nothing where the rate is given; NotRun when it is not done."""
        return [] if self.rate else rates.measured(self.arm, self.words)

    def grids(self) -> list[Grid]:
        """Its grids at its rate; NotRun as long as none is chosen."""
        return self.at(self.rate or rates.best(self.rates()).word)

    def at(self, rate: str) -> list[Grid]:
        """Its grids at a rate."""
        return [Grid(name, (*self.words, *self.test, *self.arm.words, rate)) for name in self.experiments]

    def records(self) -> list[Record]:
        """What all its runs but the validation's measured; NotRun when one is missing."""
        return [record for grid in self.grids() for record in grid.records()]


def run_all(chains: Sequence[Chain], at_once: int) -> None:
    """Every run that is not done, so many chains at a time.

    Raises:
        RuntimeError: at the end, when a sweep did not end well; what is done is kept.
    """
    with ThreadPoolExecutor(at_once) as pool:
        ended = [pool.submit(_run, chain, at_once) for chain in dict.fromkeys(chains)]
    for chain in ended:
        chain.result()


def _run(chain: Chain, at_once: int) -> None:
    if chain.rate is None:
        _sweep(rates.grid(chain.arm, chain.words), at_once)
        while (factor := _wanted(chain)) is not None:
            _sweep(rates.one_more(chain.arm, chain.words, factor), at_once)
    with COMPOSING:
        grids = chain.grids()
    for grid in grids:
        _sweep(grid, at_once)


def _wanted(chain: Chain) -> float | None:
    with COMPOSING:
        return rates.wanted(chain.rates())


def _sweep(grid: Grid, at_once: int) -> None:
    """One `dil sweep` in a process of its own, its output in a file; nothing where all runs are done."""
    with COMPOSING:
        todo = sum(not job.finished for job in grid.jobs())
    if not todo:
        return
    threads = max(1, (os.cpu_count() or 1) // at_once)
    log = LOGS / f"{grid.command.removeprefix('dil sweep experiment=').replace('/', '-').replace(' ', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{todo} runs  {grid.command}  (tail -f {log})", flush=True)
    began = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        command = [sys.executable, "-m", "dil_cli", *grid.command.split()[1:], "tracker=none"]
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
        )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode} of {grid.command} tracker=none; its output is in {log}")
    print(f"done in {(time.monotonic() - began) / 60:.1f} min  {grid.command}", flush=True)
