"""`metrics.jsonl`: the run's own record, of which every other output is a view.

One JSON object a line, keys sorted. A step and a probe measurement are a row each; an alarm is the row
`{"alarm": name, "limit": ..., "message": ..., "step": ..., "value": ...}`. NaN and infinities are null.
Each line reaches the operating system before the next step begins, so a killed process loses none;
at most the last line is cut, and `read_metrics` passes over it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.dynamics.alarms import Alarm
from dil_cli.errors import DilError
from dil_cli.tracking.sink import Row, RunInfo, plain_row


class MetricsRecord:
    """The sink that writes `metrics.jsonl` in the run's folder.

    Args:
        keep: bytes of an earlier record to keep; what stands behind them is cut off. 0 starts anew.
    """

    def __init__(self, keep: int = 0) -> None:
        self._size = keep
        self._file: BinaryIO | None = None

    @property
    def offset(self) -> int:
        """Bytes written so far; as `keep`, it takes the record back to this moment."""
        return self._size

    def cut_back(self, path: Path) -> None:
        """Cut the record to `keep` bytes.

        Raises:
            DilError: when it holds fewer bytes than that.
        """
        size = path.stat().st_size if path.exists() else 0
        if size < self._size:
            raise DilError(
                f"the record holds {size} bytes, the run to go on with wrote {self._size}", str(path),
                "put the record back, or resume=never starts over",
            )  # fmt: skip
        if size > self._size:
            os.truncate(path, self._size)

    def start(self, run: RunInfo) -> None:
        """Open the record, cut back to `keep` bytes.

        Raises:
            DilError: when it holds fewer bytes than that.
        """
        path = RunFolder(run.folder).metrics
        path.parent.mkdir(parents=True, exist_ok=True)
        self.cut_back(path)
        self._file = path.open("ab")

    def replay(self, rows: Sequence[dict[str, Any]]) -> None:
        """They are in the file."""

    def flush_to_disk(self) -> None:
        """Let what was written outlast a power cut."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def step(self, row: Row) -> None:
        """Add the row of a step."""
        self._write(row)

    def probe(self, row: Row) -> None:
        """Add the row of a measurement."""
        self._write(row)

    def alarm(self, alarm: Alarm) -> None:
        """Add the row of an alarm."""
        self._write(alarm.row())

    def note(self, text: str) -> None:
        """Notes are for the user at the console; the record holds numbers."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """The result has a file of its own."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, row: Row) -> None:
        if self._file is None:
            raise RuntimeError("the record is not open")
        line = json.dumps(plain_row(row), sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
        data = line.encode()
        self._file.write(data)
        self._file.flush()
        self._size += len(data)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a `metrics.jsonl`; a last line that was cut by a kill is left out.

    Raises:
        DilError: when the file is missing, or a whole line is not a JSON object.
    """
    if not path.is_file():
        raise DilError("there is no record here", where=str(path), fix="give the folder of a run")
    *lines, _cut = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DilError(f"line {number} of the record is damaged", where=str(path))
        rows.append(row)
    return rows
