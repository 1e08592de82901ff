"""One undisturbed run and what a disturbed one must have in common with it; files that must stay; what was tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Dil
from traces import OFTEN, Traces, run_in, traces

COUNTED = {
    "test_resume.py::": "faults survived", "test_faults.py::": "faults survived",
    "test_bad_inputs.py::": "inputs refused", "test_odd_inputs.py::": "odd inputs trained",
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the inputs, one in six is tried by `make test`; all of them by `make faults`."""
    inputs = [item for item in items if item.path.name in {"test_bad_inputs.py", "test_odd_inputs.py"}]
    for number, item in enumerate(inputs):
        if number % 6:
            item.add_marker("faults")


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


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """An output folder that holds something already."""
    kept = tmp_path / "outputs" / "earlier" / "result.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    return tmp_path / "outputs"
