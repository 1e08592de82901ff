"""A dry run says what the run would take and leaves every file and folder as it was."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dil_cli.artifacts.states import States
from dil_cli.config.schema import CheckpointConfig
from dil_cli.train import dry_run
from dil_cli.train.batches import StepPlan
from dil_cli.train.estimate import Pieces, tokens_of, tokens_of_run
from dil_cli.train.resume import OPTIMISER, POLICY
from dil_cli.train.sizes import checkpoints_at_once, states_at_once
from dil_cli.types import TokenisedPair


def tree(folder: Path) -> dict[str, object]:
    """Every path below, with what it holds and when it was last changed."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def run_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "outputs").glob("local-local-*")
    return folder


@pytest.mark.parametrize("loss", ["dpo", "sft", "aot"])
def test_nothing_is_written_where_nothing_was(loss, dil_here, small_run, tmp_path: Path):
    before = tree(tmp_path)
    code, out, err = dil_here("train", "--dry-run", f"loss={loss}", *small_run, "checkpoint.every=4")
    assert code == 0, err
    assert tree(tmp_path) == before
    assert re.search(r"^time    about \d+:\d\d, estimated by tokens, from the first 8 steps", out, re.MULTILINE)
    assert re.search(r"^  9 steps ", out, re.MULTILINE)
    assert re.search(r"^  3 probe measurements ", out, re.MULTILINE)
    scored = 4 if loss == "sft" else 40  # the held-out pairs are the probe set; sft has no reference for the others
    assert f"{scored} pairs that the cache lacks" in out
    disk = r"^disk    (\d+) kB at most \((\d+) kB for 3 checkpoints, (\d+) kB for 1 resume state\), "
    found = re.search(disk, out, re.MULTILINE)
    assert found is not None
    need, checkpoints, state = map(int, found.groups())
    memory = r"^memory  about \S+ [MG]B of \S+ GB on cpu; the peak so far, longest pairs included, is \S+ [MG]B$"
    assert re.search(memory, out, re.MULTILINE)
    parts = re.search(r"^  weights (\d+) kB, gradients (\d+) kB, optimiser (\d+) kB, rows", out, re.MULTILINE)
    assert parts is not None
    weights, gradients, optimiser = map(int, parts.groups())
    assert gradients == weights > 0
    assert optimiser == pytest.approx(2 * weights, rel=0.02)  # AdamW's two averages, once a step was taken
    assert checkpoints == pytest.approx(3 * weights, abs=2)
    assert state == pytest.approx(weights + optimiser, abs=1)
    assert need == pytest.approx(checkpoints + state, abs=1)


@pytest.mark.slow
def test_no_library_writes_either(dil, small_run, tmp_path: Path):
    """In a process of its own, whose home is empty: no W&B, no cache of matplotlib or the hub."""
    (tmp_path / "home").mkdir()
    before = tree(tmp_path)
    words = [word for word in small_run if word != "tracker=none"]
    done = dil("train", "--dry-run", *words, HOME=str(tmp_path / "home"), PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert tree(tmp_path) == before


def test_runs_and_caches_that_are_there_stay_as_they_are(dil_here, small_run, tmp_path: Path):
    assert dil_here("train", *small_run)[0] == 0
    finished = tree(tmp_path)
    code, out, _ = dil_here("train", "--dry-run", *small_run)
    assert (code, tree(tmp_path)) == (0, finished)
    assert f"finished already: {run_folder(tmp_path)}" in out

    (run_folder(tmp_path) / "result.json").unlink()
    unfinished = tree(tmp_path)
    code, out, err = dil_here("train", "--dry-run", *small_run)
    assert (code, tree(tmp_path)) == (0, unfinished), err
    assert f"an unfinished run is in {run_folder(tmp_path)}" in out
    assert re.search(r"reference +0:00  0 pairs that the cache lacks", out)

    for damaged in [*tmp_path.glob("outputs/cache/reference/*/column-*"), *tmp_path.glob("outputs/cache/tokens/*")]:
        damaged.write_bytes(b"broken")
    broken = tree(tmp_path)
    code, out, err = dil_here("train", "--dry-run", *small_run)
    assert (code, tree(tmp_path)) == (0, broken), err
    assert "40 pairs that the cache lacks" in out
    assert "cannot be used" in out
    assert "is damaged" in out


def test_a_folder_of_the_users_choice_is_not_made(dil_here, small_run, tmp_path: Path):
    before = tree(tmp_path)
    code, out, err = dil_here("train", "--dry-run", *small_run, "hydra.run.dir=mine/${name}")
    assert code == 0, err
    assert f"the run would be in {tmp_path}/mine/local-local-lsif" in out
    assert tree(tmp_path) == before


def test_a_users_own_group(dil_here, small_run, tmp_path: Path):
    mine = tmp_path / "my conf" / "loss"
    mine.mkdir(parents=True)
    (mine / "gentle.yaml").write_text("defaults:\n  - /schema/loss/dpo@_here_\nbeta: 0.02\n")
    code, out, err = dil_here("train", "--dry-run", "--config-dir", "my conf", "loss=gentle", *small_run)
    assert code == 0, err
    assert "policy = reference: dpo is 0.693147" in out


@pytest.mark.parametrize(
    "wrong",
    [
        ["loss=ukk"], ["optim.lrr=1"], ["optim.lr=fast"], ["optim.lr=-1"], ["loss=dpo,ukl"], ["preset=nono"],
        ["data=local"], ["data=local", "data.path=no.jsonl"], ["model=mistral7b"], ["data=ultrafeedback"],
        ["model=local", "model.path=./nowhere"], ["output=/dev/null/x"], ["data.max_length=9999"],
        ["--config-dir", "nowhere"], ["name=a/b"], ["ukl"], ["--cgf"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_input_ends_as_in_dil_train(wrong, dil_here, tmp_path: Path):
    code, _, err = dil_here("train", "--dry-run", *wrong)
    assert (code, len(err.splitlines())) == (2, 3)
    assert not list(tmp_path.iterdir())
    assert dil_here("train", *wrong)[::2] == (code, err)


@pytest.mark.parametrize("words", [["-m", "seed=0,1"], ["--multirun"]], ids=" ".join)
def test_several_runs_are_for_the_sweep(words, dil_here):
    code, _, err = dil_here("train", "--dry-run", *words)
    assert code == 2
    assert "dil sweep --dry-run" in err.splitlines()[-1]
    assert len(err.splitlines()) == 3


def test_a_run_that_would_fail_fails(dil_here, small_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dry_run, "free_disk", lambda folder: 10)
    code, out, err = dil_here("train", "--dry-run", *small_run)
    assert code == 1
    lack = (
        r"error: the run needs \S+ kB of disk \(\S+ kB for 1 checkpoint, \S+ kB for 1 resume state\), 10 B are free\n"
    )
    assert re.match(lack + "where: ", err)
    assert "nothing was written" not in out

    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nmore")

    monkeypatch.setattr(dry_run, "accumulate_gradient", exhausted)
    code, _, err = dil_here("train", "--dry-run", *small_run)
    assert code == 1
    assert err.splitlines()[-1] == "fix:   optim.token_budget=2048, or a smaller model"


@pytest.mark.parametrize(
    ("minutes", "steps", "seconds", "states"),
    [
        (5.0, 1000, 899, 2), (5.0, 1000, 901, 3), (5.0, 1000, 1e6, 3), (5.0, 3, 1e6, 2), (5.0, 1000, 10, 1),
        (0.0, 1000, 10, 3), (0.0, 3, 10, 2), (0.0, 1, 10, 1), (None, 1000, 1e6, 1),
    ],
)  # fmt: skip
def test_two_states_are_kept_and_a_third_is_written(minutes, steps, seconds, states):
    assert states_at_once(CheckpointConfig(resume_minutes=minutes), steps, seconds) == states


@pytest.mark.parametrize(("every", "keep", "number"), [(0, None, 1), (4, None, 3), (1, None, 9), (1, 2, 4), (4, 5, 3)])
def test_checkpoints_that_lie_there_at_once(every, keep, number):
    """Of 9 steps; one more than is kept while it is written, and the best beside the newest."""
    assert checkpoints_at_once(9, CheckpointConfig(every=every, keep=keep)) == number


def test_the_states_of_a_run_are_as_large_as_was_said(dil_here, small_run, tmp_path: Path, monkeypatch):
    """Seen after each step of a run that saves a state after each."""
    seen: list[int] = []
    save = States.save

    def watched(states: States, step: int, facts: dict[str, Any], write: Callable[[Path], None]) -> None:
        def and_look(folder: Path) -> None:
            write(folder)
            files = [file for file in states.folder.rglob("*.safetensors") if file.name in {POLICY, OPTIMISER}]
            seen.append(sum(file.stat().st_size for file in files))

        save(states, step, facts, and_look)

    often = "checkpoint.resume_minutes=0"
    code, out, _ = dil_here("train", "--dry-run", *small_run, often)
    assert code == 0
    found = re.search(r"(\S+) MB for 3 resume states", out)
    assert found is not None
    monkeypatch.setattr(States, "save", watched)
    code, _, err = dil_here("train", *small_run, often)
    assert code == 0, err
    assert max(seen) == pytest.approx(1e6 * float(found.group(1)), rel=0.06)


def pairs(*lengths: tuple[int, int, int]) -> list[TokenisedPair]:
    ids = torch.zeros(100, dtype=torch.int32).numpy()
    return [TokenisedPair(i, *(ids[:n] for n in sides)) for i, sides in enumerate(lengths)]


@pytest.mark.parametrize("epochs", [0.4, 1, 2.5])
def test_the_tokens_of_a_run_are_those_of_its_steps(epochs):
    batch = pairs(*((5 + i, 3 + i % 4, 2 + i % 5) for i in range(11)))
    plan = StepPlan(len(batch), 3, epochs, seed=1)
    assert tokens_of(batch[:1]) == 5 + 2 + 1  # the prompt once, each response without its last token
    steps = ([batch[i] for i in plan.pairs_at(step)] for step in range(plan.total))
    assert tokens_of_run(batch, plan) == sum(map(tokens_of, steps))


def test_the_first_piece_warms_up_and_does_not_count_for_the_others():
    pieces = Pieces(torch.device("cpu"), seconds=[10.0, 1.0, 3.0], tokens=[100, 100, 300])
    assert pieces.rate == 100
    assert pieces.spread is None
    assert pieces.whole(1100) == 10 + 1000 / 100
    alone = Pieces(torch.device("cpu"), seconds=[10.0], tokens=[100])
    assert (alone.rate, alone.whole(1100)) == (10, 10 + 1000 / 10)
    four = Pieces(torch.device("cpu"), seconds=[9.0, 1.0, 2.0, 1.0], tokens=[100, 100, 100, 100])
    assert four.spread == pytest.approx(28.8675 / 3**0.5 / (250 / 3), rel=1e-5)  # rates 100, 50, 100
    with four.timed(7):
        time.sleep(0.01)
    assert (four.tokens[-1], four.seconds[-1] >= 0.01) == (7, True)
