"""Signals that ask a run to stop: between steps they are obeyed at once, during one when it has been taken."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from dil_cli.distributed.requeue import OF_SUBMITIT, queue_again
from dil_cli.errors import Stopped

SAME_S = 1.0
"""A signal that comes again within this time is the same one: a terminal and a launcher both hand it on."""
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGUSR1: 75, OF_SUBMITIT: 75}
"""75 is EX_TEMPFAIL: run the same command again. Slurm sends SIGTERM or, with --signal=USR1@120, SIGUSR1 before."""


class StopSignals:
    """While the context lasts, a signal raises `Stopped`, or is kept for `obey` where `deferring` is set.

    A second signal does not wait. Python gives signals to the main thread alone; in another one nothing is installed.
    A job that submitit stopped is then queued again by submitit.
    """

    def __init__(self) -> None:
        self.deferring = False
        self._kept: signal.Signals | None = None
        self._asked: signal.Signals | None = None
        self._obeyed: signal.Signals | None = None
        self._when = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                # What this process was started to ignore, as nohup's and a background shell's SIGINT, stays ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._obeyed is OF_SUBMITIT:
            queue_again()

    @property
    def asked(self) -> bool:
        """Whether the processes of the run agreed that a signal is kept."""
        return self._asked is not None

    def agree(self, largest: Callable[[int], int]) -> None:
        """Ask for a stop in all processes of the run if one of them keeps a signal; `largest` gives the largest number.

        One that comes while they speak waits for their next agreement, or some would stop and the others not.
        """
        number = largest(int(self._kept or 0))
        self._asked = signal.Signals(number) if number else None

    def obey(self, saved: str) -> None:
        """Stop if it was agreed on; `saved` says what was done first.

        Raises:
            Stopped: with the signal's exit code.
        """
        if self._asked is not None:
            raise self._stopped(self._asked, f": {saved}")

    def _heard(self, number: int, frame: FrameType | None) -> None:
        heard = signal.Signals(number)
        if self.deferring and self._kept is None:
            self._kept, self._when = heard, time.monotonic()
            return
        if self.deferring and time.monotonic() - self._when < SAME_S:
            return
        raise self._stopped(heard)

    def _stopped(self, heard: signal.Signals, more: str = "") -> Stopped:
        self._obeyed = heard
        told = "interrupted" if heard is signal.SIGINT else f"stopped by {heard.name}"
        return Stopped(told + more, EXIT_CODES[heard])
