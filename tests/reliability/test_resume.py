"""A run that was stopped goes on as if nothing had happened: the same record, measurements and weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from traces import OFTEN, run_in, traces

from dil_cli.artifacts.owner import Owner

KILLS = int(os.environ.get("DIL_KILLS", "2"))

by_faults = pytest.mark.faults
"""Run by `make faults`; the others are the part that `make test` takes."""


def test_killed_at_random_moments_no_run_loses_a_row(start, words, whole, tmp_path: Path, record_property):
    moments = random.Random(0)
    began = time.monotonic()
    assert start(*words, "output=timed").wait() == 0
    seconds = time.monotonic() - began
    went_on = lost = 0
    for kill in range(KILLS):
        output = f"output=torn-{kill}"
        process = start(*words, output)
        time.sleep(seconds * moments.random())
        process.send(signal.SIGKILL)
        process.wait()
        again = start(*words, output)
        assert again.wait() == 0, again.text
        torn = traces(run_in(tmp_path / f"torn-{kill}"))
        assert torn == whole, again.text
        lost += sum(row not in torn.rows for row in whole.rows)
        went_on += "going on after step" in again.text
        shutil.rmtree(tmp_path / f"torn-{kill}")
    record_property("faults survived", KILLS)
    record_property("rows lost", lost)
    assert went_on > 0 or KILLS < 10, "no kill fell into training"


def killed(start, words: list[str], seen, say: str = "") -> str:
    """Start a run, kill it once `seen` or once it says something, and run it to its end; what that said."""
    process = start(*words)
    there = process.until(seen) if seen else process.says(say)
    assert there, process.text
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = start(*words)
    assert again.wait() == 0, again.text
    return again.text


@by_faults
@pytest.mark.parametrize("pattern", ["resume/.step-*.tmp", "checkpoints/.step-000004*.tmp", "probe/.step-*.tmp",
                                     "checkpoints/.step-000009*.tmp", "checkpoints/step-000009", ".*.tmp"])  # fmt: skip
def test_killed_while_a_file_is_written(pattern, start, words, whole, tmp_path: Path):
    torn = [*words, "output=torn"]
    killed(start, torn, lambda: any(tmp_path.glob(f"torn/*/{pattern}")))
    run = run_in(tmp_path / "torn")
    assert traces(run) == whole
    assert not list(run.rglob(".*.tmp"))
    assert not (run / "resume").exists()


@by_faults
def test_killed_in_the_reference_pass(start, words, whole, tmp_path: Path):
    killed(start, [*words, "output=torn"], None, "reference log-probs: 36")
    assert traces(run_in(tmp_path / "torn")) == whole


@by_faults
def test_killed_again_and_again_it_still_ends(start, words, whole, tmp_path: Path):
    for step in (2, 3, 5, 8):
        process = start(*words, "output=torn")
        assert process.says(f"step {step}/9")
        process.send(signal.SIGKILL)
        process.wait()
    last = start(*words, "output=torn")
    assert last.wait() == 0
    assert "going on after step" in last.text
    assert traces(run_in(tmp_path / "torn")) == whole


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("SIGTERM", 75),
        pytest.param("SIGUSR1", 75, marks=by_faults),
        pytest.param("SIGUSR2", 75, marks=by_faults),
        pytest.param("SIGINT", 130, marks=by_faults),
    ],
)
def test_a_signal_saves_the_state_and_says_so(sent, code, start, words, whole, tmp_path: Path):
    words = [word for word in words if word != OFTEN]  # the signal alone makes it save one
    process = start(*words, "output=torn")
    assert process.says("step 3/9")
    process.send(signal.Signals[sent])
    assert process.wait() == code
    assert "Traceback" not in process.text
    last = process.text.splitlines()[-1]
    assert last.endswith("of 9 is saved, the same command goes on")
    (state,) = run_in(tmp_path / "torn").glob("resume/step-*")
    assert int(state.name.removeprefix("step-")) >= 3
    again = start(*words, "output=torn")
    assert again.wait() == 0
    assert traces(run_in(tmp_path / "torn")) == whole


@by_faults
@pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT"])
def test_a_signal_before_the_first_step_ends_at_once(sent, start, words):
    process = start(*words, "output=torn")
    assert process.says("reading pairs")
    process.send(signal.Signals[sent])
    assert process.wait() == {"SIGTERM": 75, "SIGINT": 130}[sent]
    assert "Traceback" not in process.text


@by_faults
@pytest.mark.parametrize(
    "choice",
    [
        ["optim=muon"], ["model.dtype=bf16"], ["precision=bf16"], ["loss=bco"], ["loss=simpo"],
        ["loss=sft"], ["model.gradient_checkpointing=true"], ["dropout"],
        ["peft=lora", "peft.dropout=0.2"], ["peft=dora"],
    ],
    ids=lambda choice: " ".join(choice),
)  # fmt: skip
def test_whatever_is_trained_goes_on_the_same(choice, start, words, small_run, model_folder: Path, tmp_path: Path):
    if choice == ["dropout"]:
        config = json.loads((model_folder / "config.json").read_text())
        (model_folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.2}))
        choice = ["model.attention=eager"]
    ran = start(*words, *choice, "output=whole")
    assert ran.wait() == 0, ran.text
    process = start(*words, *choice, "output=torn")
    assert process.says("step 5/9"), process.text
    process.send(signal.SIGKILL)
    process.wait()
    again = start(*words, *choice, "output=torn")
    assert again.wait() == 0, again.text
    assert "going on after step" in again.text
    assert traces(run_in(tmp_path / "torn")) == traces(run_in(tmp_path / "whole"))


@by_faults
def test_an_adapter_that_is_trained_on_goes_on_against_the_one_it_was(start, words, tmp_path: Path):
    first = start(*words, "peft=lora", "output=first")
    assert first.wait() == 0, first.text
    adapter = max((run_in(tmp_path / "first") / "checkpoints").iterdir())
    more = ["peft=lora", f"model.path={adapter}", "seed=1"]
    whole = start(*words, *more, "output=whole")
    assert whole.wait() == 0, whole.text
    stopped(start, [*words, *more, "output=torn"])
    again = start(*words, *more, "output=torn")
    assert again.wait() == 0, again.text
    rows = traces(run_in(tmp_path / "torn")).rows
    assert rows[0]["probe/delta/chosen"] == 0, "the reference is the adapter that training began with"
    assert traces(run_in(tmp_path / "torn")) == traces(run_in(tmp_path / "whole"))


def stopped(start, words: list[str], step: int = 5) -> Path:
    """A run killed after `step` steps or a few more."""
    process = start(*words)
    assert process.says(f"step {step}/9"), process.text
    process.send(signal.SIGKILL)
    process.wait()
    (output,) = (word.removeprefix("output=") for word in words if word.startswith("output="))
    return run_in(process.log.parent / output)


def test_a_damaged_state_is_named_and_the_one_before_it_used(start, words, whole, tmp_path: Path):
    words = [*words, "output=torn"]
    older, newer = sorted(stopped(start, words).glob("resume/step-*"))
    content = bytearray((newer / "policy.safetensors").read_bytes())
    content[-5] ^= 1
    (newer / "policy.safetensors").write_bytes(content)
    again = start(*words)
    assert again.wait() == 0
    said = f"the state after step {int(newer.name[5:])} is damaged (policy.safetensors is not what was written)"
    assert said in again.text
    assert f"going on after step {int(older.name[5:])}" in again.text
    assert traces(run_in(tmp_path / "torn")) == whole


@by_faults
def test_without_a_sound_state_it_starts_over_unless_it_must_go_on(start, words, whole, tmp_path: Path):
    words = [*words, "output=torn"]
    for state in stopped(start, words).glob("resume/step-*"):
        (state / "state.json").write_text("{")
    process = start(*words, "resume=must")
    assert process.wait() == 2
    assert "there is no saved state in" in process.text
    again = start(*words)
    assert again.wait() == 0
    assert "starting over" in again.text
    assert traces(run_in(tmp_path / "torn")) == whole


@by_faults
def test_resume_never_starts_over_and_must_wants_a_run(start, words, whole, tmp_path: Path):
    words = [*words, "output=torn"]
    process = start(*words, "resume=must")
    assert process.wait() == 2
    assert not (tmp_path / "torn").exists()
    stopped(start, words)
    again = start(*words, "resume=never")
    assert again.wait() == 0
    assert "starting over" in again.text
    assert traces(run_in(tmp_path / "torn")) == whole


@by_faults
def test_a_run_that_was_moved_goes_on_where_it_is(start, words, whole, tmp_path: Path):
    run = stopped(start, [*words, "output=torn"])
    shutil.move(run, tmp_path / "elsewhere")
    again = start(*words, "output=torn", "hydra.run.dir=elsewhere")
    assert again.wait() == 0, again.text
    assert "going on after step" in again.text
    assert traces(tmp_path / "elsewhere") == whole


@by_faults
def test_a_clock_that_was_set_back_changes_nothing(start, words, whole, tmp_path: Path):
    words = [*words, "output=torn"]
    run = stopped(start, words)
    for path in [run, *run.rglob("*"), *(tmp_path / "torn" / "cache").rglob("*")]:
        os.utime(path, (2e9 + 1e8, 2e9 + 1e8))  # written in 2036
    again = start(*words)
    assert again.wait() == 0, again.text
    assert "going on after step" in again.text
    assert traces(run_in(tmp_path / "torn")) == whole


@by_faults
def test_a_starting_model_that_changed_is_refused(start, words, model_folder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    words = [*words, "output=torn"]
    run = stopped(start, words)
    weights = load_file(model_folder / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    save_file(weights, model_folder / "model.safetensors", metadata={"format": "pt"})
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "owner.json"}
    process = start(*words)
    assert process.wait() == 2
    assert "error: the starting model changed since this run began" in process.text
    assert "resume=never" in process.text
    for path, content in before.items():
        assert path.read_bytes() == content, path


@by_faults
def test_the_reference_is_the_states_even_where_the_cache_is_gone(start, words, whole, tmp_path: Path):
    words = [*words, "output=torn"]
    stopped(start, words)
    shutil.rmtree(tmp_path / "torn" / "cache")
    again = start(*words)
    assert again.wait() == 0
    assert "reference log-probs" not in again.text  # no pass of any model, least of all of the policy
    assert traces(run_in(tmp_path / "torn")) == whole


def test_two_processes_do_not_share_a_run(start, words, whole, tmp_path: Path):
    words = [*words, "output=torn"]
    first = start(*words)
    assert first.says("step 2/9")
    first.send(signal.SIGSTOP)
    second = start(*words)
    assert second.wait() == 2
    assert f"another process trains this run: pid {first.pid} on " in second.text
    assert len(second.text.split("error:")[1].splitlines()) == 3
    first.send(signal.SIGCONT)
    assert first.wait() == 0
    assert traces(run_in(tmp_path / "torn")) == whole


def test_a_run_that_another_process_is_about_to_begin_is_left_to_it(dil_here, words, whole, tmp_path: Path):
    """It has its lock and has written nothing else yet."""
    run = tmp_path / "torn" / run_in(tmp_path / "whole").name
    with Owner(run / "resume", run) as other:
        other.own()
        code, _, err = dil_here(*words, "output=torn")
    assert code == 2
    assert f"another process trains this run: pid {os.getpid()} on " in err
    assert [path.name for path in run.iterdir()] == ["resume"]


@by_faults
def test_two_that_start_at_once_train_one_run(start, words, whole, tmp_path: Path):
    words = [*words, "output=torn"]
    both = [start(*words), start(*words)]
    codes = sorted(process.wait() for process in both)
    assert codes in ([0, 0], [0, 2]), [process.text for process in both]
    assert traces(run_in(tmp_path / "torn")) == whole


@by_faults
def test_of_the_checkpoints_the_newest_and_the_best_are_kept(start, words, tmp_path: Path):
    words = [word for word in words if not word.startswith("checkpoint.every")]
    process = start(*words, "checkpoint.every=1", "checkpoint.keep=2", "optim.lr=0.3", "probe.times=9", "output=kept")
    assert process.wait() == 0, process.text
    run = run_in(tmp_path / "kept")
    losses = {row["step"]: row["probe/loss"] for row in traces(run).rows if "probe/loss" in row and 0 < row["step"] < 9}
    best = min(losses, key=lambda step: (losses[step], -step))
    assert best < 7, "the test wants a best one that is not among the newest"
    kept = {int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir()}
    assert kept == {best, 7, 8, 9}
