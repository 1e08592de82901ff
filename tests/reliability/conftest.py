"""One undisturbed run and what a disturbed one must have in common with it; files that must stay; what was tried."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from processes import Dil

from dil_cli.tracking.record import read_metrics

TIMES = {"pairs_per_s", "tokens_per_s", "memory_gb"}
OFTEN = "checkpoint.resume_minutes=0"


COUNTED = {
    "test_resume.py::": "faults survived", "test_faults.py::": "faults survived",
    "test_bad_inputs.py::": "inputs refused", "test_odd_inputs.py::": "odd inputs trained",
}  # fmt: skip


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much was tried and held: one for each test, but where it says how many."""
    counts: dict[str, int] = {}
    for report in terminalreporter.stats.get("passed", ()):
        said = dict(report.user_properties)
        for file, name in COUNTED.items():
            if file in report.nodeid:
                said.setdefault(name, 1)
        for name, number in said.items():
            counts[name] = counts.get(name, 0) + number
    if counts:
        terminalreporter.write_line(", ".join(f"{name}: {number:,}" for name, number in counts.items()))


@dataclass(frozen=True)
class Traces:
    """What a finished run leaves, less what clocks and the machine's memory say."""

    rows: list[dict[str, Any]]
    files: dict[str, bytes]
    result: dict[str, Any]


def traces(run: Path) -> Traces:
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(run / "metrics.jsonl")]
    result = json.loads((run / "result.json").read_text())
    del result["train_seconds"]
    kept = [path for part in ("probe", "checkpoints") for path in sorted((run / part).rglob("*")) if path.is_file()]
    kept = [path for path in kept if path.name != "dil_manifest.json"]  # has the run's output folder in it
    return Traces(rows, {str(path.relative_to(run)): path.read_bytes() for path in kept}, result)


@pytest.fixture
def words(small_run: list[str]) -> list[str]:
    """`dil train` of 9 steps, with a checkpoint on the way and a state after every step."""
    return ["train", *small_run, "checkpoint.every=4", OFTEN]


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Dil]:
    return lambda *argv: Dil(tmp_path, list(argv))


@pytest.fixture
def whole(start, words: list[str], tmp_path: Path) -> Traces:
    """The undisturbed run."""
    process = start(*words, "output=whole")
    assert process.wait() == 0, process.text
    return traces(run_in(tmp_path / "whole"))


def run_in(output: Path) -> Path:
    (manifest,) = output.glob("*/manifest.json")
    return manifest.parent


def tree(folder: Path) -> dict[str, str]:
    """Every path below a folder with the digest of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        for path in folder.rglob("*")
    }


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """An output folder that holds something already."""
    kept = tmp_path / "outputs" / "earlier" / "result.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    return tmp_path / "outputs"
