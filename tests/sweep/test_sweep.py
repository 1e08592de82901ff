"""`dil sweep`: checked first, one job's failure its own, finished runs kept, one table at the end."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dil_cli.errors import Told
from dil_cli.report.intervals import t_interval
from tests.conftest import overrides, write_pairs

GRID = ("loss=ukl,dpo", "seed=0,1", "optim.epochs=1", "tracker=none")


@dataclass(frozen=True)
class Whole:
    """A folder in which the grid was swept undisturbed, with output=whole, and the seconds that took."""

    folder: Path
    small_run: list[str]
    seconds: float = 0.0

    def command(self, name: str, *argv: str) -> list[str]:
        return [sys.executable, "-m", "dil_cli", name, *self.small_run, *argv]

    def dil(self, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(name, *argv), cwd=self.folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    before = Whole(folder, overrides(model_folder, write_pairs(folder / "pairs.jsonl")))
    started = time.monotonic()
    done = before.dil("sweep", *GRID, "output=whole")
    assert done.returncode == 0, done.stderr
    return replace(before, seconds=time.monotonic() - started)


def sweep_folder(output: Path) -> Path:
    (folder,) = (output / "sweeps").iterdir()
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def results(output: Path) -> dict[str, int]:
    """When each finished run's result was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in output.glob("*/result.json")}


def test_all_combinations_end_in_one_table(dil_here, small_run, tmp_path: Path):
    code, out, err = dil_here("sweep", *small_run, *GRID)
    assert code == 0, err
    output = tmp_path / "outputs"
    folder = sweep_folder(output)
    record = json.loads((folder / "sweep.json").read_text())
    assert record["swept"] == ["loss", "seed"]
    assert [(folder / job["folder"]).resolve().name for job in record["jobs"]] == [
        f"local-local-{loss}-{job['hash']}"
        for loss, job in zip(["ukl", "ukl", "dpo", "dpo"], record["jobs"], strict=True)
    ]
    table = rows(folder)
    assert [(row["loss"], row["seeds"], row["status"]) for row in table] == [
        ("ukl", "2", "2/2 done"),
        ("dpo", "2", "2/2 done"),
    ]
    # The table's numbers are those of the runs.
    ends = [
        json.loads((output / name / "result.json").read_text())["end"]["probe/delta/chosen"]
        for name in table[0]["folders"].split()
    ]
    interval = t_interval(ends)
    assert float(table[0]["delta/chosen"]) == interval.mean
    assert float(table[0]["delta/chosen/high"]) == interval.high
    for row in table:  # per token, also of the loss that sums
        ends = [json.loads((output / name / "result.json").read_text())["end"] for name in row["folders"].split()]
        assert float(row["accuracy_mean"]) == t_interval([end["probe/accuracy_mean"] for end in ends]).mean
    assert "4 runs, 0 done, 4 to do" in out
    assert out.count("36 pairs to train on, 4 held out") == 1, "what all runs share is told once"
    assert "now number 4: loss=dpo seed=1 (about 0:" in out
    assert f"{interval.mean:+.3f}" in (folder / "table.md").read_text()

    # The same command again does nothing, and one seed more runs that seed only.
    before = results(output)
    code, out, _ = dil_here("sweep", *small_run, *GRID)
    assert code == 0
    assert "4 runs, 4 done, 0 to do" in out
    assert results(output) == before
    code, out, _ = dil_here("sweep", *small_run, *GRID[:1], "seed=range(0,3)", *GRID[2:], "--dry-run")
    assert code == 0
    assert out.count("\n  done   loss=") == 4
    assert out.count("\n  to do  loss=") == 2
    assert "of training left" in out
    assert results(output) == before


def test_a_run_in_a_sweep_is_the_run_by_itself(whole: Whole):
    alone = whole.dil("train", "loss=dpo", "seed=1", *GRID[2:], "output=alone")
    assert alone.returncode == 0, alone.stderr
    (one,) = (whole.folder / "alone").glob("*/result.json")
    other = whole.folder / "whole" / one.parent.name / "result.json"
    numbers = [json.loads(path.read_text()) for path in (one, other)]
    for number in numbers:
        del number["train_seconds"]
    assert numbers[0] == numbers[1]
    # Four runs, one reference pass: its column is one file for the training pairs and one for the probe set.
    assert len(list((whole.folder / "whole" / "cache" / "reference").glob("*/*.parquet"))) <= 2


def test_nothing_starts_while_a_job_is_wrong(dil_here, small_run, tmp_path: Path):
    code, _, err = dil_here(
        "sweep", *small_run, "loss=ukl,dpo", "data.limit=8,4", "data.path=pairs.jsonl,nowhere.jsonl"
    )
    assert code == 2
    assert "; 3 more jobs cannot start either" in err
    assert "(job 5 of 8: data.path=nowhere.jsonl loss=ukl data.limit=8)" in err
    assert not list(tmp_path.glob("outputs/*/manifest.json"))
    assert not (tmp_path / "outputs" / "sweeps").exists()


def test_a_failing_job_leaves_the_others_running(dil_here, small_run, tmp_path: Path):
    rates = "optim.lr=1e-3,1e30"
    code, _, err = dil_here("sweep", *small_run, "loss=lsif", rates, "loss.exp_cap=null", "tracker=none")
    assert code == 1
    assert "error: 1 of 2 runs are not done; optim.lr=1e+30:" in err
    assert [row["status"] for row in rows(sweep_folder(tmp_path / "outputs"))] == ["1/1 done", "0/1 done, 1 failed"]
    # Again: the finished one is kept, the failed one is tried.
    code, out, _ = dil_here("sweep", *small_run, "loss=lsif", rates, "loss.exp_cap=null", "tracker=none")
    assert code == 1
    assert "2 runs, 1 done, 1 to do" in out


def test_the_same_run_twice_is_run_once(dil_here, small_run):
    code, out, err = dil_here("sweep", *small_run, "loss=ukl", "optim.token_budget=512,1024", "tracker=none")
    assert code == 0, err
    assert "1 run, 0 done, 1 to do" in out
    assert "1 more of the combinations give a run that is there already" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["seed=range(0,0)"], 2, "error: there is nothing to run: a list is empty"),
        (["seed=0,1", "hydra.run.dir=mine"], 2, "error: one folder for 2 runs\nwhere: hydra.run.dir=mine"),
        (["seed=0,1", "hydra/launcher=joblob"], 2, "did you mean joblib?"),
        (["experiment=fig2"], 2, "did you mean fig2_dynamics?"),
        (["seed=0,1", "hydra/launcher=slurm"], 2, "error: the slurm launcher starts nothing here: "),
    ],
)
def test_wrong_ways_to_start_in_three_lines(words, code, said, dil_here, small_run, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no sbatch
    ended, _, err = dil_here("sweep", *small_run, *words)
    assert ended == code
    assert said in err
    assert len(err.strip().splitlines()) <= 3
    assert not list(tmp_path.glob("outputs/*/manifest.json"))


def test_a_job_that_one_of_its_processes_told_of_gives_its_exit_code_back(dil_here, small_run, monkeypatch):
    """A launcher that gets nothing back takes the job's worker for lost, and starts it again."""
    started: list[int] = []

    def run(config: object, chosen: object) -> int:
        started.append(1)
        raise Told(2)

    monkeypatch.setattr("dil_cli.train.run.run", run)
    code, _, err = dil_here("sweep", *small_run, "seed=0,1")
    assert code == 1
    assert len(started) == 2
    assert "it ended with exit code 2" in err
    assert "launcher stopped" not in err


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [["joblib", "hydra.launcher.n_jobs=2"], ["submitit_local", "hydra.launcher.timeout_min=5"]]
)
def test_launchers_give_the_same_table(launcher, whole: Whole):
    name, option = launcher
    done = whole.dil("sweep", *GRID, f"output={name}", f"hydra/launcher={name}", option)
    assert done.returncode == 0, done.stderr
    assert rows(sweep_folder(whole.folder / name)) == rows(sweep_folder(whole.folder / "whole"))


@pytest.mark.slow
def test_processes_of_joblib_end_with_the_sweep(whole: Whole):
    sweep = subprocess.Popen(
        whole.command("sweep", *GRID, "output=left", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        cwd=whole.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert sweep.stdout is not None
    assert any("pairs to train on" in line for line in sweep.stdout), "a job has begun"
    workers = _children(sweep.pid)
    sweep.kill()
    sweep.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(map(_alive, workers)):
        time.sleep(0.2)
    assert workers
    assert not any(map(_alive, workers))


def _children(parent: int) -> list[int]:
    """Process ids of what a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def _alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that no one has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_table(whole: Whole):
    moments = random.Random(0)
    for _ in range(int(os.environ.get("DIL_KILLS", "1"))):
        process = subprocess.Popen(
            whole.command("sweep", *GRID, "output=torn"),
            cwd=whole.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(whole.seconds * moments.uniform(0.3, 0.9))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert whole.dil("sweep", *GRID, "output=torn").returncode == 0
    for name in ("table.csv", "table.md"):
        torn = (sweep_folder(whole.folder / "torn") / name).read_bytes()
        assert torn == (sweep_folder(whole.folder / "whole") / name).read_bytes()
