"""Where the seconds of an optimiser step go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum


class Part(str, Enum):
    """What a process does in a step; the rest of its time it waits for data."""

    compute = "compute"
    """Forward and backward passes."""
    update = "update"
    """Norm, clipping and the optimisers."""
    communication = "communication"
    """Waiting for other processes, and exchanging with them."""


class StepClock:
    """Seconds of one step and of its parts, as the host sees them.

    A GPU works behind the host, which waits for it at the values it reads: the losses of each micro-batch, and the norm
    of the gradient. So the last micro-batch's backward pass counts as update, and what is exchanged while a GPU
    computes counts nowhere.
    """

    def __init__(self) -> None:
        self._spent = dict.fromkeys(Part, 0.0)
        self._open: list[Part] = []
        self._began = self._last = time.perf_counter()

    def begin(self) -> None:
        """Begin a step."""
        self._spent = dict.fromkeys(Part, 0.0)
        self._began = self._last = time.perf_counter()

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Count what passes inside as `part`; of parts within parts as the innermost alone."""
        self._book()
        self._open.append(part)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    @property
    def seconds(self) -> float:
        """Since the step began."""
        return time.perf_counter() - self._began

    def spent(self, part: Part) -> float:
        """Seconds of this step in `part`, of what has ended."""
        return self._spent[part]

    @property
    def waited(self) -> float:
        """Seconds of this step in no part: for data."""
        return max(0.0, self.seconds - sum(self._spent.values()))

    def _book(self) -> None:
        now = time.perf_counter()
        if self._open:
            self._spent[self._open[-1]] += now - self._last
        self._last = now
