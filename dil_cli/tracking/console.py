"""The run as a person sees it: a live view in a terminal, plain lines everywhere else. All on stdout."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from dil_cli.dynamics.alarms import Alarm
from dil_cli.tracking.sink import Row, RunInfo, Sink
from dil_cli.tracking.summary import Journey, alarm_line, clock, step_numbers

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console
    from rich.live import Live
    from rich.progress import Progress, TaskID

WORTH_SAYING_S = 2.0
"""A phase shorter than this ends without a line of its own."""
PLAIN_LINES = 20
"""At most this many progress lines a run without a terminal."""

PLAIN_PAUSE_S = 10.0
"""Seconds between two lines about one long phase."""

ALARM_STYLE = "bold yellow"


class Phase(Protocol):
    """A long part of the work before or between steps."""

    def advance(self, n: int) -> None:
        """`n` more items are done."""


class ConsoleSink(Sink, Protocol):
    """A sink that also shows phases."""

    def phase(self, name: str, total: int | None) -> AbstractContextManager[Phase]:
        """Show `name` while the context lasts; `total` items, None where unknown."""


def make_console(stream: TextIO | None = None) -> ConsoleSink:
    """The live view if `stream` (stdout) is a terminal that can redraw, else plain lines."""
    from rich.console import Console

    stream = stream or sys.stdout
    if not stream.isatty() or Console(file=stream).is_dumb_terminal:
        return PlainConsole(stream)
    return LiveConsole(Console(file=stream, highlight=False))


class SilentConsole:
    """Of a process that is not the first of its run: it says nothing."""

    @contextmanager
    def phase(self, name: str, total: int | None) -> Iterator[Phase]:
        """Nothing is shown."""
        yield _SilentPhase()

    def start(self, run: RunInfo) -> None:
        """Nothing."""

    def replay(self, rows: Sequence[dict[str, Any]]) -> None:
        """Nothing."""

    def step(self, row: Row) -> None:
        """Nothing."""

    def probe(self, row: Row) -> None:
        """Nothing."""

    def alarm(self, alarm: Alarm) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _SilentPhase:
    def advance(self, n: int) -> None:
        pass


_told: set[str] | None = None


@contextmanager
def facts_once() -> Iterator[None]:
    """While this lasts, as during a sweep, what `tell` has told of one run it does not tell of the next."""
    global _told
    before, _told = _told, set()
    try:
        yield
    finally:
        _told = before


def tell(console: ConsoleSink, fact: str) -> None:
    """A note on data, model or settings, which runs of one process may share."""
    if _told is None or fact not in _told:
        console.note(fact)
    if _told is not None:
        _told.add(fact)


class PlainConsole:
    """Lines without control characters, for a log file or a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._journey: Journey | None = None
        self._began = 0.0
        self._before: int | None = None
        self._mark = 0

    @contextmanager
    def phase(self, name: str, total: int | None) -> Iterator[Phase]:
        """A line when it begins, one each few seconds of progress, one at the end of a long one."""
        self.note(f"{name}: {'' if total is None else f'{total} '}...")
        phase = _PlainPhase(self, name, total)
        yield phase
        if (seconds := time.monotonic() - phase.began) >= WORTH_SAYING_S:
            self.note(f"{name}: done in {clock(seconds)}")

    def start(self, run: RunInfo) -> None:
        """Print the header."""
        self._journey = Journey(run)
        self._began, self._before, self._mark = time.monotonic(), None, 0
        for line in self._journey.header():
            self.note(line)

    def replay(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep them for the end."""
        self._require().went_on(rows)

    def step(self, row: Row) -> None:
        """Print a line at each twentieth of the run."""
        total, step = self._require().run.total_steps, int(row["step"])
        if self._before is None:
            self._before = step - 1  # not 0 in a run that goes on from a checkpoint
        mark = step * PLAIN_LINES // max(total, 1)
        if mark == self._mark:
            return
        self._mark = mark
        elapsed = time.monotonic() - self._began
        left = elapsed / (step - self._before) * (total - step)
        self.note(f"step {step}/{total}  {step_numbers(row)}  {clock(elapsed)} elapsed  {clock(left)} left")

    def probe(self, row: Row) -> None:
        """Print a line."""
        journey = self._require()
        journey.probed(row)
        self.note(journey.measured(row))

    def alarm(self, alarm: Alarm) -> None:
        """Print a line."""
        self._require().alarms.append(alarm)
        self.note(alarm_line(alarm))

    def note(self, text: str) -> None:
        """Print a line; a reader that went away (`dil train | head`) does not end the run."""
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:
            self._stream = Path(os.devnull).open("w")  # noqa: SIM115 (as long as the run)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Print the table, the alarms and the folder."""
        from rich.console import Console

        journey = self._require()
        wide = Console(file=self._stream, force_terminal=False, color_system=None, width=100, highlight=False)
        wide.print(journey.table())
        for line in journey.ending():
            self.note(line)

    def close(self) -> None:
        """Nothing is held."""

    def _require(self) -> Journey:
        assert self._journey is not None, "start() comes first"
        return self._journey


class _PlainPhase:
    def __init__(self, console: PlainConsole, name: str, total: int | None) -> None:
        self._console, self._name, self._total = console, name, total
        self._done = 0
        self.began = self._printed = time.monotonic()

    def advance(self, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._printed < PLAIN_PAUSE_S or self._done == self._total:
            return
        self._printed = now
        text = f"{self._name}: {self._done}"
        if self._total is not None:
            left = (now - self.began) / max(self._done, 1) * (self._total - self._done)
            text += f"/{self._total}  {clock(left)} left"
        self._console.note(text)


class LiveConsole:
    """A progress bar with the latest numbers under it; what lasts scrolls away above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._journey: Journey | None = None
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._numbers = self._changes = ""

    @contextmanager
    def phase(self, name: str, total: int | None) -> Iterator[Phase]:
        """A bar of its own while it lasts; if it was long, a line with its time afterwards."""
        progress, began = self._show(), time.monotonic()
        task = progress.add_task(name, total=total)
        try:
            yield _LivePhase(progress, task)
            if (seconds := time.monotonic() - began) >= WORTH_SAYING_S:
                self.note(f"{name}: done in {clock(seconds)}")
        finally:
            progress.remove_task(task)
            if self._task is None:
                self.close()

    def start(self, run: RunInfo) -> None:
        """Print the header and show the bar."""
        self._journey = Journey(run)
        self._numbers = self._changes = ""
        for line in self._journey.header():
            self.note(line)
        self._task = self._show().add_task("training", total=run.total_steps)

    def replay(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep them for the end, and begin the bar where they end."""
        self._require().went_on(rows)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=max((int(row["step"]) for row in rows), default=0))

    def step(self, row: Row) -> None:
        """Move the bar."""
        self._numbers = step_numbers(row)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=int(row["step"]))

    def probe(self, row: Row) -> None:
        """Print a line above the bar, and keep the change in view under it."""
        journey = self._require()
        journey.probed(row)
        self._changes = journey.measured(row)
        self._print(self._changes)

    def alarm(self, alarm: Alarm) -> None:
        """Print a line above the bar."""
        self._require().alarms.append(alarm)
        self._print(alarm_line(alarm), ALARM_STYLE)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._print(text)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Take the bar away; print the table, the alarms and the folder."""
        self.close()
        journey = self._require()
        self._console.print(journey.table())
        for line in journey.ending():
            self._print(line, ALARM_STYLE if line.startswith("ALARM") else "")

    def close(self) -> None:
        """Give the terminal back, its cursor shown."""
        if self._live is not None:
            self._live.stop()
        self._live = self._progress = self._task = None

    def _show(self) -> Progress:
        """The running display, begun if there is none."""
        if self._progress is not None:
            return self._progress
        from rich import progress as bars
        from rich.live import Live

        self._progress = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=None),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(compact=True),
            console=self._console,
            expand=True,
        )
        self._live = Live(console=self._console, get_renderable=self._view, refresh_per_second=4, transient=True)
        self._live.start()
        return self._progress

    def _view(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [] if self._progress is None else [self._progress]
        parts += [Text(line) for line in (self._numbers, self._changes) if line]
        return Group(*parts)

    def _print(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style))

    def _require(self) -> Journey:
        assert self._journey is not None, "start() comes first"
        return self._journey


class _LivePhase:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, n: int) -> None:
        self._progress.advance(self._task, n)
