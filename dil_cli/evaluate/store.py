"""Lines that are kept as they come: generations and verdicts that cost too much to be had twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dil_cli.errors import DilError


def key_of(*content: Any) -> str:
    """What names a line: a hash of all that its content depends on."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class Lines:
    """A JSONL file that only grows, a line for each key; of two the later counts.

    Each line is handed to the operating system before the next one, so that a process that is killed loses at most
    the line it was writing. What it wrote of that is cut off before anything is added.
    """

    def __init__(self, path: Path, file: IO[bytes], kept: Mapping[str, Mapping[str, Any]]) -> None:
        self.path = path
        self._file, self._kept = file, dict(kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def __getitem__(self, key: str) -> Mapping[str, Any]:
        return self._kept[key]

    def add(self, key: str, content: Mapping[str, Any]) -> None:
        """Write a line."""
        self._file.write(json.dumps({"key": key, **content}, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self._kept[key] = content


@contextmanager
def open_lines(path: Path) -> Iterator[Lines]:
    """The lines of a file, for one process at a time.

    Raises:
        DilError: when another process writes to it.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DilError(
            f"another dil eval is writing {path.name} of this checkpoint", str(path), "wait until it has ended"
        ) from error
    try:
        with path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            file.truncate(whole)  # a torn line would swallow the next one
            yield Lines(path, file, dict(_readable(content[:whole])))
    finally:
        lock.release()


def _readable(content: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The lines that are whole; any other is had again, so it is passed over."""
    for line in content.split(b"\n"):
        try:
            row = json.loads(line)
            yield row.pop("key"), row
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
