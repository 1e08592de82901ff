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
from dil_cli.errors import RunFailed
from dil_cli.main import exit_code

if TYPE_CHECKING:
    from dil_cli.config.schema import TrainConfig

Work = Callable[["TrainConfig", "Path | None"], int]

GRACE_S = 10.0
"""Between the end of the first process that failed and SIGTERM to those that are left; as long again to SIGKILL."""
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
    """Wait for all to end; which failed first, None if none did. The others of a failed one have `GRACE_S` to end."""
    left: dict[Any, int] = {process.sentinel: rank for rank, process in enumerate(started)}
    first: int | None = None
    deadlines = [(float("inf"), BaseProcess.terminate)]
    while left:
        ended = wait(list(left), timeout=None if first is None else max(0.0, deadlines[0][0] - time.monotonic()))
        for rank in sorted(left.pop(sentinel) for sentinel in ended if sentinel in left):
            started[rank].join()
            if started[rank].exitcode and first is None:
                first, now = rank, time.monotonic()
                deadlines = [(now + GRACE_S, BaseProcess.terminate), (now + 2 * GRACE_S, BaseProcess.kill)]
        if time.monotonic() >= deadlines[0][0]:
            _, end = deadlines.pop(0)
            for rank in left.values():
                end(started[rank])
            deadlines = deadlines or [(float("inf"), end)]
    return first


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
