"""Real processes that start in a moment: forked from a server that has imported what `dil train` needs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch", "transformers", "hydra", "pyarrow.parquet", "matplotlib.figure", "dil_cli.config.compose",
     "dil_cli.train.run", "transformers.models.llama.modeling_llama"]
)  # fmt: skip


class Dil:
    """`dil ARGV` in `folder`, its stdout and stderr in `log`."""

    def __init__(self, folder: Path, argv: list[str]) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}.txt"
        self.log.touch()
        self._process = self._start(folder, argv)
        self._process.start()

    def _start(self, folder: Path, argv: list[str]) -> BaseProcess:
        return FORKS.Process(target=main_in, args=(str(folder), argv, str(self.log)))

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float = 120) -> int:
        """The exit code; that of a killed process is the signal's number, negative."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"it still runs:\n{self.text}"
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    def until(self, seen: Callable[[], bool], seconds: float = 120) -> bool:
        """Wait for something; False when the process ended before."""
        end = time.monotonic() + seconds
        while not seen():
            if not self._process.is_alive():
                return seen()
            assert time.monotonic() < end, f"not seen:\n{self.text}"
            time.sleep(0.001)
        return True

    def says(self, text: str) -> bool:
        return self.until(lambda: text in self.text)


def main_in(folder: str, argv: list[str], log: str) -> None:
    """`dil ARGV` in `folder`, its output in `log`."""
    handle = os.open(log, os.O_WRONLY)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["dil", *argv]
    from dil_cli.main import main

    main()
