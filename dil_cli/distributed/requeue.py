"""Submitit's signal, before a job's time is over or when it is pre-empted, and what queues the job again."""

from __future__ import annotations

import signal

OF_SUBMITIT = signal.SIGUSR2


def queue_again() -> None:
    """Give the signal to submitit's handler once a run has saved its state, since it may end this process at once.

    Nothing happens where there is no handler, as outside submitit's jobs.
    """
    handler = signal.getsignal(OF_SUBMITIT)
    if callable(handler):
        handler(OF_SUBMITIT, None)
