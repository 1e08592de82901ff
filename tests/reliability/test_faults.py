"""The disk and the world around a run fail: nothing is half-written, and the same command ends in the same run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from traces import run_in, traces

from dil_cli.tracking.record import read_metrics

pytestmark = pytest.mark.faults


def mounts() -> bool:
    """Whether a file system can be mounted in a namespace of our own."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run(["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False)
    return tried.returncode == 0


needs_mounts = pytest.mark.skipif(not mounts(), reason="no file system can be mounted here")


def dil_on(folder: Path, mount: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """`dil` with another file system at `folder`, and what is there afterwards copied to `after`."""
    command = f'{mount} && "$@"; code=$?; cp -a "{folder}" "{folder.parent / "after"}"; exit $code'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, "sh", sys.executable, "-m", "dil_cli", *argv],
        cwd=folder.parent, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@needs_mounts
@pytest.mark.parametrize("kilobytes", [8, 120, 500, 900])
def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_room(kilobytes, words, whole, start, tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    mount = f'mount -t tmpfs -o size={kilobytes}k none "{small}"'
    failed = dil_on(small, mount, *words, "output=small")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "No space left on device" in failed.stderr
    assert len(failed.stderr.splitlines()) == 3, failed.stderr
    assert "Traceback" not in failed.stderr
    left = tmp_path / "after"
    assert not list(left.rglob(".*.tmp"))
    again = start(*words, "output=after")
    assert again.wait() == 0, again.text
    assert traces(run_in(left)) == whole


@needs_mounts
def test_a_state_that_finds_no_room_does_not_end_the_run(words, start, tmp_path: Path):
    # The record and the measurements fit, a state never does, and neither does the checkpoint at the end.
    small = tmp_path / "small"
    small.mkdir()
    words = [word for word in words if not word.startswith("checkpoint.every")]
    failed = dil_on(small, f'mount -t tmpfs -o size=220k none "{small}"', *words, "output=small")
    assert failed.returncode == 1
    assert "cannot be saved (" in failed.stdout
    assert len([row for row in read_metrics(run_in(tmp_path / "after") / "metrics.jsonl") if "loss" in row]) == 9


@needs_mounts
def test_a_read_only_output_is_refused_before_training(words, tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    failed = dil_on(small, f'mount -t tmpfs -o ro none "{small}"', *words, "output=small")
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "no run folder can be made" in failed.stderr
    assert "step " not in failed.stdout
    assert not list((tmp_path / "after").iterdir())


def test_wandb_is_rebuilt_from_the_record(start, words, tmp_path: Path):
    sys.path.insert(0, str(Path(__file__).parents[1] / "tracking"))
    from wandb_reader import read_wandb

    words = [*(word for word in words if word != "tracker=none"), "tracker.mode=offline", "output=torn"]
    process = start(*words)
    assert process.says("step 5/9"), process.text
    process.send(signal.SIGKILL)
    process.wait()
    again = start(*words)
    assert again.wait() == 0, again.text
    assert "going on after step" in again.text
    run = run_in(tmp_path / "torn")
    found = read_wandb(run)
    assert found["history"] == [row for row in read_metrics(run / "metrics.jsonl") if "alarm" not in row]
    assert found["exit_code"] == 0
    assert found["summary"]["result/steps"] == 9


def test_wandb_that_cannot_be_reached_costs_no_row(dil, words, whole, tmp_path: Path):
    words = [*(word for word in words if word != "tracker=none"), "tracker.mode=online", "output=alone"]
    nowhere = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online"}
    done = dil(*words, **nowhere)
    assert done.returncode == 0, done.stderr
    assert "W&B cannot go online" in done.stdout
    assert traces(run_in(tmp_path / "alone")) == whole


def test_a_hub_that_cannot_be_reached_is_named_before_anything_is_written(dil, tmp_path: Path):
    nowhere = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0",
               "HF_ENDPOINT": "http://127.0.0.1:9"}  # fmt: skip
    done = dil("train", "model.path=org/model", "tracker=none", **nowhere)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_that_was_told_to_stop_goes_on_in_the_run_it_was_in(start, words, whole, tmp_path: Path):
    words = ["sweep", *words[1:], "output=torn", "loss=lsif,dpo"]
    process = start(*words)
    assert process.says("step 3/9")
    process.send(signal.SIGTERM)
    assert process.wait() == 75, process.text
    again = start(*words)
    assert again.wait() == 0, again.text
    assert "going on after step" in again.text
    (lsif,) = (path.parent for path in (tmp_path / "torn").glob("*-lsif-*/result.json"))
    assert traces(lsif) == whole


def test_a_run_in_use_fails_its_job_of_a_sweep_and_is_not_touched(start, words, whole, tmp_path: Path):
    first = start(*words, "output=torn")
    assert first.says("step 2/9")
    first.send(signal.SIGSTOP)
    sweep = start("sweep", *words[1:], "output=torn", "loss=lsif,dpo")
    assert sweep.wait() == 1, sweep.text
    assert f"another process trains this run: pid {first.pid}" in sweep.text
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.text
    (lsif,) = (path.parent for path in (tmp_path / "torn").glob("*-lsif-*/result.json"))
    assert traces(lsif) == whole
    assert not (lsif / "failure.json").exists()


@pytest.mark.parametrize("file", ["policy.safetensors", "optimiser.safetensors", "reference.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "missing", "zeros"])
def test_every_file_of_a_state_is_checked(file, damage, start, words, whole, tmp_path: Path):
    words = [*words, "output=torn"]
    process = start(*words)
    assert process.says("step 5/9")
    process.send(signal.SIGKILL)
    process.wait()
    run = run_in(tmp_path / "torn")
    newest = max(run.glob("resume/step-*")) / file
    content = newest.read_bytes()
    if damage == "missing":
        newest.unlink()
    else:
        newest.write_bytes(content[: len(content) // 2] if damage == "cut" else bytes(len(content)))
    again = start(*words)
    assert again.wait() == 0, again.text
    assert "is damaged (" in again.text
    assert "going on after step" in again.text
    assert traces(run) == whole


def test_nan_in_a_label_free_run_is_named_again_when_it_goes_on(start, small_run, tmp_path: Path):
    rows = [{"prompt": f"say it {i}", "chosen": "a" * 60, "rejected": f"{i}"} for i in range(40)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["train", *small_run, "data.path=long.jsonl", "loss.reduction=sum", "loss.exp_cap=null", "optim.lr=0.02",
             "optim.epochs=20", "optim.schedule=constant", "checkpoint.resume_minutes=0", "output=bad"]  # fmt: skip
    first, second = start(*words), None
    assert first.wait() == 1
    failure = (run_in(tmp_path / "bad") / "failure.json").read_bytes()
    second = start(*words)
    assert second.wait() == 1
    assert "going on after step" in second.text
    assert (run_in(tmp_path / "bad") / "failure.json").read_bytes() == failure


def test_a_lock_of_a_dead_process_is_taken_over(start, words, tmp_path: Path):
    words = [*words, "output=torn"]
    process = start(*words)
    assert process.says("step 2/9")
    process.send(signal.SIGKILL)
    process.wait()
    run = run_in(tmp_path / "torn")
    assert json.loads((run / "resume" / "owner.json").read_text())["pid"] == process.pid
    assert (run / "resume" / "lock").exists()
    assert start(*words).wait() == 0


def test_a_rerun_of_a_finished_run_removes_what_a_kill_left(start, words, tmp_path: Path):
    words = [*words, "output=torn"]
    assert start(*words).wait() == 0
    run = run_in(tmp_path / "torn")
    (run / "resume" / "step-000008").mkdir(parents=True)
    (run / ".result.json.0123abcd.tmp").write_text("half")
    again = start(*words)
    assert again.wait() == 0
    assert "finished already" in again.text
    assert not (run / "resume").exists()
    assert not list(run.glob(".*"))
