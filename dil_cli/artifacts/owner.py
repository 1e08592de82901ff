"""One process to a run folder: a lock that the system takes back when its owner dies, and the owner's name."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from dil_cli.errors import DilError
from dil_cli.files import write_json


class Owner(AbstractContextManager["Owner"]):
    """This process's hold on a run, from the first `own` to the end of the context.

    Where the file system cannot lock files, nothing is kept apart.
    """

    def __init__(self, folder: Path, run: Path) -> None:
        """`folder`: where the lock lies, made by `own`; `run`: what is owned, for the error."""
        self._folder, self._run = folder, run
        self._lock: FileLock | None = None

    def own(self) -> None:
        """Keep other processes from the run; nothing to do where that is so already.

        Raises:
            DilError: when another process owns it, naming that one.
        """
        if self._lock is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._folder / "lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise DilError(
                f"another process trains this run: {_named(self._folder / 'owner.json')}", str(self._run),
                "wait for it, or stop it: the same command then goes on from its last step",
            ) from None  # fmt: skip
        except (OSError, NotImplementedError):
            return
        write_json(
            self._folder / "owner.json",
            {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")},
        )

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.release()


def _named(file: Path) -> str:
    """The owner in words; it may be about to write its name."""
    try:
        owner = json.loads(file.read_text(encoding="utf-8"))
        return f"pid {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its name is not written yet"
