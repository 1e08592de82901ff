"""Wrong input ends before training: what, where, fix; exit code 2; and every file is as it was."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from bad_config import EVALS, SWEEPS, VALUES, WORDS, YAML
from bad_data import FILES, GOOD, lines
from bad_models import FOLDERS
from folder_tree import tree
from models_on_disk import made

from dil_cli.losses import registry


def half(cases: Iterable[str]) -> list[ParameterSet]:
    """Every second case is for `make slow`: composing a config takes a fifth of a second."""
    return [pytest.param(case, marks=[pytest.mark.slow] if i % 2 else []) for i, case in enumerate(cases)]


ONE_VALUE = [
    pytest.param(key, value, id=f"{key}={value}", marks=[pytest.mark.slow] if number else [])
    for key, values in VALUES.items()
    for number, value in enumerate(values.split(" "))
]


def check_refusal(code: int, err: str, says: str) -> None:
    """Three lines that a terminal can show, which say this."""
    assert code == 2, err
    labels = [line[:7] for line in err.splitlines()]
    assert labels == ["error: ", "where: ", "fix:   "], err
    assert all(7 < len(line) < 700 for line in err.splitlines()), err
    assert all(line.isprintable() for line in err.splitlines()), ascii(err)
    assert says in err


@pytest.fixture
def refused(dil_here, tmp_path: Path, earlier: Path):
    """`refused("train", ..., says="...")`: the command is refused and nothing is left of it."""

    def run(*argv: str, says: str) -> None:
        before = tree(tmp_path)
        code, _, err = dil_here(*argv)
        check_refusal(code, err, says)
        assert tree(tmp_path) == before

    return run


@pytest.mark.parametrize(("key", "value"), ONE_VALUE)
def test_value(key: str, value: str, refused, small_run):
    refused("train", *small_run, f"{key}={value}", says=key)


@pytest.mark.parametrize("case", half(WORDS))
def test_words(case: str, refused, small_run):
    words, says = WORDS[case]
    refused("train", *small_run, *words, says=says)


@pytest.mark.parametrize("case", YAML)
def test_yaml(case: str, refused, small_run, tmp_path: Path):
    content, says = YAML[case]
    mine = tmp_path / "conf" / "loss" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(content)
    refused("train", *small_run, "--config-dir", "conf", "loss=mine", says=says)


@pytest.mark.parametrize("case", SWEEPS)
def test_sweep(case: str, refused, small_run):
    words, says = SWEEPS[case]
    refused("sweep", *small_run, *words, says=says)


@pytest.mark.parametrize("case", EVALS)
def test_eval(case: str, refused):
    words, says = EVALS[case]
    refused("eval", *words, says=says)


@pytest.mark.parametrize("case", half(FILES))
def test_data(case: str, refused, small_run, tmp_path: Path):
    name, content, says = FILES[case]
    (tmp_path / name).write_bytes(content)
    refused("train", *small_run, f"data.path={name}", says=says)


@pytest.mark.parametrize("case", half(FOLDERS))
def test_model(case: str, refused, small_run, tmp_path: Path, model_folder: Path):
    change, says = FOLDERS[case]
    made(model_folder, change, tmp_path / "m")
    refused("train", *small_run, "model.path=m", says=says)


def test_data_folder_without_files(refused, small_run, tmp_path: Path):
    (tmp_path / "d").mkdir()
    refused("train", *small_run, "data.path=d", says="d has no split train; data files in it: none")


def test_data_pipe(refused, small_run, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    refused("train", *small_run, "data.path=pipe.jsonl", says="there is no file or folder pipe.jsonl")


def test_data_link_to_itself(refused, small_run, tmp_path: Path):
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    refused("train", *small_run, "data.path=loop.jsonl", says="there is no file or folder loop.jsonl")


def test_data_device(refused, small_run):
    refused("train", *small_run, "data.path=/dev/zero", says="there is no file or folder /dev/zero")


def test_model_file(refused, small_run, tmp_path: Path):
    (tmp_path / "weights").write_bytes(b"x")
    refused("train", *small_run, "model.path=weights", says="weights is a file, a model is a folder")


def test_prompts_of_which_only_a_held_out_one_is_wrong(refused, small_run, tmp_path: Path, model_folder: Path):
    """The training split can be tokenised and the other one cannot: not even a cache of the first is left."""
    from models_on_disk import template

    bad = "{% for m in messages %}{{ (messages|length if 'odd' in m.content else '') ~ m.content }}{% endfor %}"
    made(model_folder, template(bad), tmp_path / "m")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_bytes(lines(*GOOD))
    (tmp_path / "d" / "test.jsonl").write_bytes(lines(*GOOD, GOOD[0] | {"prompt": "odd"}))
    words = ["model.path=m", "data.path=d", "data.heldout_split=test", "data.heldout_fraction=null"]
    refused("train", *small_run, *words, says="writes the prompt differently once a response follows")


FLOATS = [
    (loss, name)
    for loss, kind in registry.LOSSES.items()
    for name, field in getattr(kind, "__dataclass_fields__").items()  # noqa: B009
    if field.type in {"float", "float | None"}
]


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "name"), FLOATS, ids=[f"{loss}.{name}" for loss, name in FLOATS])
def test_nan_in_a_loss(loss: str, name: str, refused, small_run):
    refused("train", *small_run, f"loss={loss}", f"loss.{name}=nan", says=f"loss.{name}")


PROCESSES = {
    "a value": (["optim.lr=nan"], "optim.lr is nan"),
    "a long value": ([f"optim.lr={'x' * 3000}"], "is not a number"),
    "a colour": (["name='\x1b[31mred'"], r"name is '\x1b[31mred'"),
    "bytes that are no UTF-8": (["data.path='\udcff.jsonl'"], r"data.path is '\udcff.jsonl'"),
    "data": (["data.path=d.jsonl"], "chosen is null"),
    "a model": (["model.path=m"], "of 2 files with weights are missing"),
    "output": (["output=/proc/nope"], "/proc cannot be written"),
}


@pytest.mark.parametrize("case", half(PROCESSES))
def test_process(case: str, dil, small_run, tmp_path: Path, earlier: Path, model_folder: Path):
    """As a user types it: what libraries print on their own must not come on top."""
    change, _ = FOLDERS["a missing shard"]
    made(model_folder, change, tmp_path / "m")
    (tmp_path / "d.jsonl").write_bytes(FILES["null"][1])
    before = tree(tmp_path)
    words, says = PROCESSES[case]
    done = dil("train", *small_run, *words)
    check_refusal(done.returncode, done.stderr, says)
    assert tree(tmp_path) == before
