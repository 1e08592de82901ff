"""Any bytes as a data file and any word as an override end in rows or a config, or in an error of ours."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from bad_data import GOOD
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dil_cli.config.compose import compose
from dil_cli.config.schema import DataConfig, DataSource
from dil_cli.data.load import load_pairs
from dil_cli.data.rows import READABLE, read_file
from dil_cli.errors import DilError

BOUNDED = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}

TEXT = st.text(st.characters(codec=None), max_size=20)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]) | SCALAR, "content": SCALAR})
VALUE = SCALAR | st.lists(TURN | SCALAR, max_size=4)
COLUMN = st.sampled_from(
    ["prompt", "chosen", "rejected", "response", "completion", "question", "answer", "info", "summaries", "choice"]
)
ROWS = st.lists(st.dictionaries(COLUMN | TEXT, VALUE, max_size=5), max_size=6)


def in_three_lines(error: DilError) -> None:
    """At most three lines that a terminal can show."""
    shown = str(error).splitlines()
    assert 1 <= len(shown) <= 3
    assert all(line.isprintable() and len(line) < 700 for line in shown)


@settings(max_examples=300, **BOUNDED)
@given(content=st.binary(max_size=300), name=st.sampled_from(READABLE))
def test_any_bytes(content: bytes, name: str, tmp_path: Path):
    path = tmp_path / f"d{name}"
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    try:
        assert all(isinstance(row.values, dict) for row in read_file(path))
    except DilError as error:
        in_three_lines(error)


@settings(max_examples=400, **BOUNDED)
@given(rows=ROWS, needs_rejected=st.booleans())
def test_any_rows(rows: list[dict], needs_rejected: bool, tmp_path: Path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *GOOD]))
    config = DataConfig(
        source=DataSource.local, path=str(path), heldout_fraction=0.1, max_length=64, max_prompt_length=32
    )
    try:
        splits = load_pairs(config, 1, needs_rejected=needs_rejected)
    except DilError as error:
        in_three_lines(error)
        return
    (read,) = splits.counts.read
    assert read.rows == len(rows) + len(GOOD)
    assert read.usable + sum(read.skipped.values()) == read.rows
    assert len(splits.train) + len(splits.heldout) == read.usable
    written = path.read_text()
    assert all(json.dumps(pair.chosen)[1:-1] in written for pair in splits.train), "a response was changed"


KEYS = st.sampled_from(
    ["optim.lr", "optim.epochs", "data.limit", "data.path", "name", "seed", "loss", "model", "probe", "loss.exp_cap"]
)
WORD = st.builds("{}={}".format, KEYS, SCALAR.map(str) | TEXT | st.text("[]{}()$:,='\"\\ 1ea.", max_size=12))


@settings(max_examples=30, **BOUNDED)
@given(word=WORD | st.text(max_size=12))
def test_any_override(word: str):
    try:
        compose("train", ["tracker=none", word])
    except DilError as error:
        in_three_lines(error)


def test_the_error_of_anything_is_three_lines():
    @settings(max_examples=300, **BOUNDED)
    @given(what=st.text(st.characters(codec=None)), fix=st.text(st.characters(codec=None)))
    def check(what: str, fix: str) -> None:
        in_three_lines(DilError(what * 40, "here", fix))

    check()


def test_hypothesis_can_fail():
    """The checks above tell an error of ours from another's."""
    with pytest.raises(AssertionError):
        in_three_lines(type("Other", (DilError,), {"__str__": lambda self: "a\nb\nc\nd"})("x"))
