"""Files that are either whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import json
import os
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
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; keys keep their order."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
