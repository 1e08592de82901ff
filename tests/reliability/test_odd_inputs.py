"""Odd inputs train, the console says what was done of them, and the user's files stay as they were."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from bad_data import LINES
from folder_tree import tree
from models_on_disk import made
from odd_inputs import DATA, MODELS, WORDS


def numbers(node: object) -> list[float]:
    """All numbers in a JSON document."""
    if isinstance(node, dict | list):
        return [n for value in (node.values() if isinstance(node, dict) else node) for n in numbers(value)]
    return [node] if isinstance(node, float) else []


@pytest.fixture
def trained(dil_here, small_run, tmp_path: Path):
    """`trained("seed=0", says="...")`: a few steps end in a result with finite numbers."""
    (tmp_path / "few.jsonl").write_bytes(LINES)

    def run(*words: str, says: str = "") -> None:
        before = tree(tmp_path)
        code, out, err = dil_here("train", *small_run, "data.path=few.jsonl", "probe.times=1", *words)
        assert code == 0, err
        assert err == ""
        assert says in out
        (result,) = (path for path in tmp_path.rglob("result.json"))
        assert all(map(math.isfinite, numbers(json.loads(result.read_text()))))
        after = tree(tmp_path)
        assert {path: after.get(path) for path in before} == before

    return run


@pytest.mark.parametrize("case", WORDS)
def test_words(case: str, trained):
    trained(*WORDS[case])


@pytest.mark.parametrize("case", DATA)
def test_data(case: str, trained, tmp_path: Path):
    name, content, says = DATA[case]
    (tmp_path / name).write_bytes(content)
    trained(f"data.path='{name}'", says=says)


@pytest.mark.parametrize("case", MODELS)
def test_model(case: str, trained, tmp_path: Path, model_folder: Path):
    change, says = MODELS[case]
    made(model_folder, change, tmp_path / "m")
    trained("model.path=m", says=says)


def test_process(dil, small_run, tmp_path: Path):
    """As a user types it."""
    (tmp_path / "d.jsonl").write_bytes(DATA["dirty rows"][1])
    done = dil("train", *small_run, "data.path=d.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 skipped" in done.stdout
