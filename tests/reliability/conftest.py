"""What the tests of inputs share: a place with files that must stay as they are, and how many inputs were tried."""

from __future__ import annotations

from pathlib import Path

import pytest

COUNTED = {"inputs refused": "test_bad_inputs.py::", "odd inputs trained": "test_odd_inputs.py::"}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """An output folder that holds something already."""
    kept = tmp_path / "outputs" / "earlier" / "result.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    return tmp_path / "outputs"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", ())]
    counts = {name: sum(file in nodeid for nodeid in passed) for name, file in COUNTED.items()}
    if any(counts.values()):
        terminalreporter.write_line(", ".join(f"{name}: {count}" for name, count in counts.items()))
