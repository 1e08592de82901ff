"""Files that are either whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, to be written (a file or a folder); it takes its place at the end.

    After an exception the old content stays and the temporary one is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, since a process id is not unique among the machines that share a network file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _sync(temporary)
        if path.is_dir():  # which nothing can take the place of in one go
            old = path.with_name(f"{temporary.name}.old.tmp")
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left of `replacing` anywhere in `folder`."""
    for path in folder.rglob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; keys keep their order."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


LARGEST = 1e150
"""Squares of larger numbers are infinite, or nearly."""

NOT_SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, those that turn the direction of writing, and halves of a character."""


def parse_json(text: str) -> Any:
    """JSON of a file that anyone may have written: strings that can be shown, numbers that can be computed with.

    Raises:
        ValueError: when it is no JSON, holds a number beyond `LARGEST`, or is nested too deep.
    """
    try:
        return _shown(json.loads(text, parse_float=_number, parse_int=_number))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _number(digits: str) -> float | int:
    value = float(digits)
    if not abs(value) <= LARGEST:
        raise ValueError("it holds a number that is too large")
    return int(digits) if digits.lstrip("-").isdigit() else value


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return NOT_SHOWN.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, dict):
        return {_shown(key): _shown(item) for key, item in value.items()}
    return value


def mark_used(path: Path) -> None:
    """Let the modification time of a cached file say when it was last of use; of no matter where that is refused."""
    with suppress(OSError):
        os.utime(path)


def _sync(path: Path) -> None:
    """Put content on the disk before the rename does, or a power cut leaves an empty file under a good name."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    if path.is_dir():
        _sync_folder(path)


def _sync_folder(path: Path) -> None:
    """Put a folder's names on the disk; of no matter where folders cannot be opened."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
