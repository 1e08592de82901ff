"""Start a run's processes on this machine, hand signals on to them, and end with what ended them.

They are told their places as torchrun tells them. Its agent is not used, since it ends with 1 whatever its processes
ended with, and gives them half a minute to save what they have.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from dil_cli.config import custom
from dil_cli.distributed.requeue import OF_SUBMITIT, queue_again
from dil_cli.errors import DilError, RunFailed
from dil_cli.main import exit_code

if TYPE_CHECKING:
    from dil_cli.config.schema import TrainConfig

Work = Callable[["TrainConfig", "Path | None"], int]

AFTER_A_KILL_S, AFTER_WRONG_INPUT_S, AFTER_A_FAILURE_S = 5.0, 15.0, 300.0
"""From the end of the first process that failed to SIGKILL for those that are left.

The others of a killed one wait in vain for it, those of one that found wrong input may. When a run fails, all processes
know, and the main one may be writing its weights.
"""
FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, OF_SUBMITIT)


def start(processes: int, work: Work, config: TrainConfig, chosen: Path | None) -> int:
    """Run `work(config, chosen)` in so many new processes; the exit code of the first that failed, else 0.

    Raises:
        RunFailed: when one was killed, which then could say nothing itself.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    # Held here, so that it outlives each of them, and with a port of the system's choice.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn = multiprocessing.get_context("spawn")
    started: list[BaseProcess] = []
    with _forwarding(started) as forwarded:
        for rank in range(processes):
            with _environment(_place(rank, processes, store.port)):
                process = spawn.Process(target=_one, args=(work, config, chosen, dict(custom.LOADED)))
                process.start()
            started.append(process)
        first = _watch(started)
    if first is None:
        return 0
    code = started[first].exitcode or 1
    if code < 0:
        raise RunFailed(
            f"process {first + 1} of {processes} was killed ({signal.Signals(-code).name})",
            f"pid {started[first].pid}",
            "was it the system, for want of memory? the same command goes on from the last state",
        )  # fmt: skip
    if OF_SUBMITIT in forwarded:
        queue_again()
    return code


def _place(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a process; each has its part of the cores unless it is told otherwise."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": threads,
    }  # fmt: skip


def _one(work: Work, config: TrainConfig, chosen: Path | None, own_code: Mapping[str, str]) -> None:
    """The whole life of one process."""
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()

    def run() -> int:
        custom.adopt(own_code)
        return work(config, chosen)

    sys.exit(exit_code(run))


def _end_with_parent() -> None:
    """Killed, the parent could not end this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _watch(started: Sequence[BaseProcess]) -> int | None:
    """Wait for all to end; which failed first, None if none did. The others then have a time to end."""
    left: dict[Any, int] = {process.sentinel: rank for rank, process in enumerate(started)}
    first: int | None = None
    deadline: float | None = None
    while left:
        ended = wait(list(left), timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        for rank in sorted(left.pop(sentinel) for sentinel in ended if sentinel in left):
            started[rank].join()
            code = started[rank].exitcode
            if code and first is None:
                first, deadline = rank, time.monotonic() + _grace(code)
        if deadline is not None and time.monotonic() >= deadline:
            deadline = None
            for rank in left.values():
                started[rank].kill()
    return first


def _grace(code: int) -> float:
    if code < 0:
        return AFTER_A_KILL_S
    return AFTER_WRONG_INPUT_S if code == DilError.exit_code else AFTER_A_FAILURE_S


@contextmanager
def _forwarding(started: Sequence[BaseProcess]) -> Iterator[set[int]]:
    """Signals that ask for an end reach the processes, which save a state first, and not this one; those that came."""
    forwarded: set[int] = set()

    def forward(number: int, frame: FrameType | None) -> None:
        forwarded.add(number)
        for process in started:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    here = threading.current_thread() is threading.main_thread()
    heard = [n for n in FORWARDED if here and signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in heard}
    try:
        yield forwarded
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables as a child inherits them, before it imports anything."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
