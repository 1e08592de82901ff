"""The protocol of everything that listens to a run, and the fan-out over several listeners."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from dil_cli.dynamics.alarms import Alarm

Row: TypeAlias = Mapping[str, Any]
"""A flat row: `step` and metrics; those of a probe measurement begin with `probe/`."""


@dataclass(frozen=True)
class RunInfo:
    """What a listener may tell about a run. `config` is the resolved config as plain dicts and lists."""

    name: str
    folder: Path
    config: dict[str, Any]
    total_steps: int
    loss: str
    reduction: str
    model: str
    data: str
    n_train: int
    n_probe: int


class Sink(Protocol):
    """Hears of a run from `start` to `close`; `finish` only if the run reached its end."""

    def start(self, run: RunInfo) -> None:
        """Before the first row."""

    def replay(self, rows: Sequence[dict[str, Any]]) -> None:
        """Before the first new row of a run that goes on: all rows of its record so far (`record.py`)."""

    def step(self, row: Row) -> None:
        """After each optimiser step."""

    def probe(self, row: Row) -> None:
        """After each measurement of the probe set, step 0 included."""

    def alarm(self, alarm: Alarm) -> None:
        """When a limit is crossed."""

    def note(self, text: str) -> None:
        """One line for the user."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """At the end of a complete run, with its result."""

    def close(self) -> None:
        """Release everything, whether the run finished or not; may be called more than once."""


class Sinks:
    """Passes everything on to each sink, in the order given (the record first)."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def start(self, run: RunInfo) -> None:
        """Before the first row."""
        for sink in self._sinks:
            sink.start(run)

    def replay(self, rows: Sequence[dict[str, Any]]) -> None:
        """Before the first new row of a run that goes on."""
        for sink in self._sinks:
            sink.replay(rows)

    def step(self, row: Row) -> None:
        """After each optimiser step."""
        for sink in self._sinks:
            sink.step(row)

    def probe(self, row: Row) -> None:
        """After each measurement of the probe set."""
        for sink in self._sinks:
            sink.probe(row)

    def alarm(self, alarm: Alarm) -> None:
        """When a limit is crossed."""
        for sink in self._sinks:
            sink.alarm(alarm)

    def note(self, text: str) -> None:
        """One line for the user."""
        for sink in self._sinks:
            sink.note(text)

    def finish(self, result: Mapping[str, Any]) -> None:
        """At the end of a complete run."""
        for sink in self._sinks:
            sink.finish(result)

    def close(self) -> None:
        """Close every sink, the first one last, even if one of them fails."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)


def plain_row(row: Row) -> dict[str, Any]:
    """The row as JSON knows it: Python numbers, and None for NaN and infinities, which JSON cannot hold."""
    return {key: _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)  # numpy scalars and tensors of one element too
    return number if math.isfinite(number) else None
