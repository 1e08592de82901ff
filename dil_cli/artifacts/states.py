"""What an unfinished run goes on from: `resume/step-000053/` in its folder, whole or not there, checked when read.

A state is files of tensors and `state.json`, which holds the other facts and the sha256 of each file. The newest two
are kept, so that a damaged one leaves the one before it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dil_cli.files import replacing, write_json

KEPT = 2
FACTS = "state.json"


@dataclass(frozen=True)
class State:
    """A run after `step` optimiser steps: its files of tensors in `folder`, all else in `facts`."""

    step: int
    folder: Path
    facts: dict[str, Any]


class States:
    """The states of one run, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, facts: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Add the state after `step` and remove all but the newest two.

        Args:
            step: optimiser steps done.
            facts: what goes into JSON.
            write: writes the files of tensors into the folder it is given.
        """
        with replacing(self._place(step)) as temporary:
            temporary.mkdir()
            write(temporary)
            digests = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
            write_json(temporary / FACTS, {"step": step, "facts": facts, "sha256": digests})
        for old in self._steps()[:-KEPT]:
            shutil.rmtree(self._place(old))

    def newest(self, say: Callable[[str], None]) -> State | None:
        """The newest state that is whole, None without one; a damaged one is named and removed."""
        for step in reversed(self._steps()):
            folder = self._place(step)
            try:
                return State(step, folder, _read(folder))
            except (OSError, ValueError, KeyError, TypeError) as error:
                say(f"the state after step {step} is damaged ({error}); it is removed, the one before it is used")
                shutil.rmtree(folder)
        return None

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*") if path.is_dir())

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"


def _read(folder: Path) -> dict[str, Any]:
    """The facts, when every file is what it was.

    Raises:
        ValueError: naming the file that is not.
    """
    content = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    for name, digest in content["sha256"].items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _sha256(folder / name) != digest:
            raise ValueError(f"{name} is not what was written")
    facts: dict[str, Any] = content["facts"]
    return facts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
