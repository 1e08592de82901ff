"""The processes of one run, forked from a server that has imported torch, and told their places as a launcher does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from torch.distributed import TCPStore

from tests.reliability import processes


class Ranks:
    """`dil ARGV` in `number` processes, each with its output in a log of its own."""

    def __init__(self, folder: Path, number: int, argv: list[str]) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.all = [Rank(folder, argv, place(rank, number, self._store.port)) for rank in range(number)]

    def __getitem__(self, rank: int) -> Rank:
        return self.all[rank]

    def wait(self, seconds: float = 120) -> list[int]:
        """The exit codes."""
        return [rank.wait(seconds) for rank in self.all]

    def send(self, number: signal.Signals) -> None:
        for rank in self.all:
            rank.send(number)

    @property
    def text(self) -> str:
        return "\n".join(rank.text for rank in self.all)


class Rank(processes.Dil):
    """One of them."""

    def __init__(self, folder: Path, argv: list[str], environment: dict[str, str]) -> None:
        self.environment = environment
        super().__init__(folder, argv)

    def _start(self, folder: Path, argv: list[str]) -> processes.BaseProcess:
        return processes.FORKS.Process(target=_main, args=(self.environment, str(folder), argv, str(self.log)))


def place(rank: int, number: int, port: int) -> dict[str, str]:
    """As torchrun says it."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip


def _main(environment: dict[str, str], folder: str, argv: list[str], log: str) -> None:
    os.environ.update(environment)
    processes.main_in(folder, argv, log)
