"""Find run folders and read what each says of itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.errors import DilError
from dil_cli.files import parse_json
from dil_cli.report.sweep import is_sweep, read_sweep

Status = Literal["done", "failed", "unfinished"]


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder. `result` is there when the run is done, `failure` when it failed."""

    folder: Path
    name: str
    hash: str
    loss: str
    reduction: str
    seed: int
    config: dict[str, Any]
    manifest: dict[str, Any]
    result: dict[str, Any] | None
    status: Status
    failure: dict[str, Any] | None = None


@dataclass(frozen=True)
class Damaged:
    """A folder that is left out, and why: it cannot be read, is missing, or holds a run that is there already."""

    folder: Path
    reason: str


def read_run(folder: Path) -> Run:
    """What `folder` holds.

    Raises:
        DilError: naming the file that is missing or damaged.
    """
    files = RunFolder(folder)
    manifest = _read_json(files.manifest)
    result = _read_json(files.result) if files.result.is_file() else None
    failure = _read_json(files.failure) if files.failure.is_file() else None
    config = manifest.get("config")
    if not isinstance(config, dict):
        raise DilError("manifest.json holds no config", str(files.manifest), _FIX)
    try:
        if result is not None:
            _check_result(result)
        return Run(
            folder=folder,
            name=str(config["name"]),
            hash=str(manifest["hash"]),
            loss=str(config["loss"]["name"]),
            # A loss that combines others has theirs; only the result says what it shows.
            reduction=str((result or {}).get("reduction") or config["loss"].get("reduction", "-")),
            seed=int(config["seed"]),
            config=config,
            manifest={**manifest, "environment": dict(manifest.get("environment", {}))},
            result=result,
            status="done" if result is not None else "failed" if failure is not None else "unfinished",
            failure=failure,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no usable value of {error}" if isinstance(error, KeyError) else str(error)
        raise DilError(f"manifest.json or result.json is damaged: {what}", str(folder), _FIX) from error


def find_runs(paths: Sequence[Path]) -> tuple[list[Run], list[Damaged]]:
    """Every run below `paths`, in the order of their folders, each once; what had to be left out.

    Args:
        paths: run folders, sweep folders, or folders that hold them at any depth.

    Raises:
        DilError: when a path is not there, or no run is found at all.
    """
    runs: dict[str, Run] = {}
    damaged: list[Damaged] = []
    for folder, missing in _candidates(paths):
        if missing:
            damaged.append(Damaged(folder, missing))
            continue
        try:
            run = read_run(folder)
        except DilError as error:
            damaged.append(Damaged(folder, error.what))
            continue
        first = runs.setdefault(run.hash, run)
        if first is not run:
            # The better of the two, or a run that was repeated after a failure would be lost.
            if first.status != "done" and run.status == "done":
                runs[run.hash], run = run, first
            damaged.append(Damaged(run.folder, f"the run {run.hash} is there already, in {runs[run.hash].folder.name}"))
    if not runs:
        shown = " ".join(map(str, paths))
        why = f"no usable run: {damaged[0].folder.name}: {damaged[0].reason}" if damaged else "there is no run here"
        raise DilError(why, shown, "give folders of runs, such as: dil report outputs")
    return sorted(runs.values(), key=lambda run: (str(run.folder), run.hash)), damaged


def _candidates(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Run folders in order, each once; with a reason when a sweep names one that is not there."""
    found: dict[Path, str] = {}
    for path in paths:
        if not path.is_dir():
            what = "is a file" if path.exists() else "is not there"
            raise DilError(f"{path} {what}", f"dil report {path}", "give a folder of runs, such as: dil report outputs")
        if is_sweep(path):
            for overrides, folder in read_sweep(path).jobs:
                there = folder.is_dir()
                found.setdefault(folder.resolve(), "" if there else f"missing; the sweep's job is {overrides}")
        else:
            for folder in _walk(path):
                found.setdefault(folder.resolve(), "")
    return sorted(found.items())


def _walk(path: Path) -> Iterator[Path]:
    """Run folders at and below `path`; nothing below a run folder is looked at."""
    for here, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if name != "cache" and not name.startswith("."))
        if "manifest.json" in files or "metrics.jsonl" in files:
            folders.clear()
            yield Path(here)


def _check_result(result: dict[str, Any]) -> None:
    """Raise KeyError, TypeError or ValueError for a result that a report could not read to its end."""
    end = result["end"]
    int(end["step"])
    float(end["probe/logps/chosen"])
    for name, value in end.items():
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"{name} is no number")
    float(result.get("train_seconds", 0))
    for alarm in result.get("alarms", []):
        if not {"step", "name", "message"} <= alarm.keys():
            raise ValueError("an alarm lacks its step, name or message")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DilError(f"{path.name} is missing", str(path), _FIX) from error
    except (OSError, ValueError) as error:
        raise DilError(f"{path.name} cannot be read as JSON", str(path), _FIX) from error
    if not isinstance(value, dict):
        raise DilError(f"{path.name} is not a JSON object", str(path), _FIX)
    return value


_FIX = "if it is a run, the command that made it makes it again"
