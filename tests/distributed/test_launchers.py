"""Jobs that a sweep gives to submitit: their tasks are one run's processes, and a job that was stopped goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.reliability.traces import run_in

pytestmark = pytest.mark.distributed

T = TypeVar("T")

SLURM = ["sbatch", "srun", "sacct", "scontrol", "scancel"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with Slurm's commands, first on the PATH."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    source = (Path(__file__).parent / "slurm_here.py").read_text().partition("\n")[2]
    for name in SLURM:
        command = folder / name
        command.write_text(f"#!{sys.executable}\n{source}")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_a_slurm_job_of_two_nodes_is_one_run(slurm: Path, dil, small_run, tmp_path: Path):
    done = dil(
        "sweep", *small_run, "distributed=ddp", "hydra/launcher=slurm", "hydra.launcher.nodes=2",
        "hydra.launcher.gpus_per_node=2", "hydra.launcher.partition=gpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    asked = (slurm / "job.sh").read_text().splitlines()
    for line in [
        "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--partition=gpu", "--signal=USR2@120", "--time=1440",
    ]:  # fmt: skip
        assert f"#SBATCH {line}" in asked
    run = run_in(tmp_path / "outputs")
    assert "rank3/pairs_per_s" in (run / "metrics.jsonl").read_text().splitlines()[-2]


@pytest.mark.parametrize("started", [["hydra.launcher.tasks_per_node=2"], ["distributed.processes=2"]])
def test_a_job_whose_time_is_over_is_queued_again_and_goes_on(started, small_run, tmp_path: Path):
    """Its tasks are the run's processes, or its only task has started them."""
    sweep = subprocess.Popen(
        [sys.executable, "-m", "dil_cli", "sweep", *small_run, "optim.epochs=5", "distributed=ddp",
         "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", *started],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    log = _when(lambda: next(tmp_path.rglob("*_0_log.out"), None))
    _when(lambda: "\nstep " in log.read_text())
    for process in _tasks(sweep.pid):
        os.kill(process, signal.SIGUSR2)
    told, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, told
    text = "".join(log.read_text() for log in log.parent.glob("*_log.*"))
    assert text.count("is saved, the same command goes on") == 1
    assert "going on after step" in text
    assert "step 45/45" in text
    assert (run_in(tmp_path / "outputs") / "result.json").is_file()


def _when(there: Callable[[], T | None]) -> T:
    """What `there` gives once it gives something."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if found := there():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come")


def _tasks(sweep: int) -> list[int]:
    """Process ids of the job's tasks, which submitit's controller has started, and the sweep the controller."""
    return [task for controller in _children(sweep) for task in _children(controller)]


def _children(parent: int) -> list[int]:
    threads = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]
