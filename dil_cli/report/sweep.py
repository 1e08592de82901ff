"""`sweep.json`: which runs a sweep is made of, and the question it asks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dil_cli.errors import DilError

FILE = "sweep.json"


@dataclass(frozen=True)
class Sweep:
    """A sweep folder, read.

    `swept` holds config keys, a group's choice under the key that names it (`loss` is `loss.name`); `jobs` each job's
    overrides and its run folder.
    """

    folder: Path
    name: str
    hash: str
    question: str | None
    baseline: str | None
    x: str | None
    swept: tuple[str, ...]
    jobs: tuple[tuple[str, Path], ...]


def config_key(override: str) -> str:
    """The config key that a command-line key sets: `loss` chooses a file, whose name is `loss.name`."""
    return {"loss": "loss.name", "model": "model.path", "data": "data.path", "optim": "optim.kind"}.get(
        override, override
    )


def is_sweep(folder: Path) -> bool:
    """Whether `folder` is a sweep's."""
    return (folder / FILE).is_file()


def read_sweep(folder: Path) -> Sweep:
    """The sweep in `folder`.

    Raises:
        DilError: when `sweep.json` cannot be read or lacks a field.
    """
    path = folder / FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if "/" in str(record["name"]):  # the report's folder is named after it
            raise ValueError("its name is a path")
        jobs = sorted(record["jobs"], key=lambda job: int(job["index"]))
        return Sweep(
            folder=folder,
            name=str(record["name"]),
            hash=str(record["hash"]),
            question=record.get("question"),
            baseline=record.get("baseline"),
            x=None if record.get("x") is None else config_key(record["x"]),
            swept=tuple(config_key(key) for key in record["swept"]),
            jobs=tuple((" ".join(job["overrides"]), folder / job["folder"]) for job in jobs),
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DilError(
            f"{FILE} is damaged ({type(error).__name__}: {error})",
            str(path),
            "run the sweep again; it skips what is done",
        ) from error
