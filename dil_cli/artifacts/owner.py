"""One process to a run folder: a lock that the system takes back when its owner dies, and the owner's name."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dil_cli.errors import DilError
from dil_cli.files import write_json


@contextmanager
def owning(folder: Path, run: Path) -> Iterator[None]:
    """While this lasts no other process owns `folder`, which is made.

    Where the file system cannot lock files, nothing is kept apart.

    Args:
        folder: where the lock lies.
        run: what is owned, for the error.

    Raises:
        DilError: when another process owns it, naming that one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise DilError(
            f"another process trains this run: {_named(folder / 'owner.json')}", str(run),
            "wait for it, or stop it: the same command then goes on from its last step",
        ) from None  # fmt: skip
    except (OSError, NotImplementedError):
        yield
        return
    try:
        write_json(
            folder / "owner.json",
            {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")},
        )
        yield
    finally:
        lock.release()


def _named(file: Path) -> str:
    """The owner in words; it may be about to write its name."""
    try:
        owner = json.loads(file.read_text(encoding="utf-8"))
        return f"pid {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its name is not written yet"
