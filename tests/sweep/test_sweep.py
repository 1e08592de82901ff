"""`dil sweep`: checked first, one job's failure its own, finished runs kept, one table at the end."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dil_cli.report.intervals import t_interval

GRID = ("loss=ukl,dpo", "seed=0,1", "optim.epochs=1", "tracker=none")


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
    assert "4 runs, 0 done, 4 to do" in out
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


def test_a_run_in_a_sweep_is_the_run_by_itself(dil, small_run, tmp_path: Path):
    assert dil("sweep", *small_run, *GRID).returncode == 0
    alone = dil("train", *small_run, "loss=dpo", "seed=1", *GRID[2:], "output=alone")
    assert alone.returncode == 0, alone.stderr
    (one,) = (tmp_path / "alone").glob("*/result.json")
    other = tmp_path / "outputs" / one.parent.name / "result.json"
    numbers = [json.loads(path.read_text()) for path in (one, other)]
    for number in numbers:
        del number["train_seconds"]
    assert numbers[0] == numbers[1]
    # Four runs, one reference pass: its column is one file for the training pairs and one for the probe set.
    assert len(list((tmp_path / "outputs" / "cache" / "reference").glob("*/*.parquet"))) <= 2


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
    assert "1 of the combinations are the same run as another" in out


@pytest.mark.parametrize(
    "launcher", [["joblib", "hydra.launcher.n_jobs=2"], ["submitit_local", "hydra.launcher.timeout_min=5"]]
)
def test_launchers_give_the_same_table(launcher, dil, small_run, tmp_path: Path):
    assert dil("sweep", *small_run, *GRID, "output=here").returncode == 0
    name, option = launcher
    done = dil("sweep", *small_run, *GRID, "output=there", f"hydra/launcher={name}", option)
    assert done.returncode == 0, done.stderr
    assert rows(sweep_folder(tmp_path / "there")) == rows(sweep_folder(tmp_path / "here"))


def test_killed_at_any_moment_it_ends_in_the_same_table(small_run, tmp_path: Path):
    command = [sys.executable, "-m", "dil_cli", "sweep", *small_run, *GRID]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = time.monotonic()
    subprocess.run([*command, "output=whole"], cwd=tmp_path, check=True, **quiet)
    whole = time.monotonic() - started
    moments = random.Random(0)
    for _ in range(int(os.environ.get("DIL_KILLS", "2"))):
        process = subprocess.Popen([*command, "output=torn"], cwd=tmp_path, start_new_session=True, **quiet)
        time.sleep(whole * moments.uniform(0.3, 0.9))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "output=torn"], cwd=tmp_path, check=True, **quiet)
    for name in ("table.csv", "table.md"):
        torn = (sweep_folder(tmp_path / "torn") / name).read_bytes()
        assert torn == (sweep_folder(tmp_path / "whole") / name).read_bytes()
