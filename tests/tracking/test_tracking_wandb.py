from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wandb_reader import read_wandb

from dil_cli.config.schema import TrackerConfig, WandbMode
from dil_cli.dynamics.alarms import Alarm
from dil_cli.tracking.record import MetricsRecord, read_metrics
from dil_cli.tracking.sink import RunInfo, Sinks
from dil_cli.tracking.wandb_sink import WandbSink, resolve_mode

KEY = "0123456789abcdef" * 2 + "01234567"
CONFIG = {"seed": 42, "name": "n", "optim": {"lr": 3e-4, "kind": "adamw"}, "data": {"limit": None}, "tags": ["a"]}

TRAIN = """
import sys
from pathlib import Path
from dil_cli.config.schema import TrackerConfig, WandbMode
from dil_cli.tracking.record import MetricsRecord
from dil_cli.tracking.sink import RunInfo, Sinks
from dil_cli.tracking.wandb_sink import WandbSink

sinks = Sinks([MetricsRecord(), WandbSink(TrackerConfig(mode=WandbMode.auto), "run-0a1b2c3d", print, init_timeout=1)])
sinks.start(RunInfo("run", Path("run"), {"seed": 1}, 2, "lsif", "mean", "tiny", "gsm8k_pairs", 10, 4))
for step in (1, 2):
    sinks.step({"step": step, "loss": -0.5})
sinks.finish({})
sinks.close()
"""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def run_info(folder: Path) -> RunInfo:
    return RunInfo("run", folder, CONFIG, 2, "lsif", "mean", "tiny", "gsm8k_pairs", 10, 4)


def test_an_offline_run_holds_the_rows_of_the_record(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    notes: list[str] = []
    tracker = TrackerConfig(mode=WandbMode.offline, project="dil-test", group="fig2", tags=["x"])
    sinks = Sinks([MetricsRecord(), WandbSink(tracker, "run-0a1b2c3d", notes.append)])
    sinks.start(run_info(tmp_path))
    sinks.probe({"step": 0, "probe/logps/chosen": -0.745, "probe/delta/chosen": 0.0})
    for step in range(1, 301):  # more than one 32 KiB block
        sinks.step({"step": step, "loss": -0.5 - 1 / step, "logps/chosen": -1 / 3, "grad_norm": float("nan")})
    sinks.probe({"step": 300, "probe/logps/chosen": -0.85, "probe/delta/chosen": -0.105})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    sinks.alarm(Alarm("chosen_fall", 300, "it fell", 0.7, 0.5))
    sinks.finish({"seconds": 1.5, "nested": {"left": "out"}, "bad": float("nan")})
    sinks.close()

    found = read_wandb(tmp_path)
    assert notes == []
    assert found["history"] == rows
    assert len(rows) == 302
    assert {key: found["config"][key] for key in CONFIG} == CONFIG
    run = found["run"]
    assert (run.run_id, run.display_name, run.project, run.run_group) == ("run-0a1b2c3d", "run", "dil-test", "fig2")
    assert list(run.tags) == ["x"]
    assert found["step_metrics"]["*"] == "step"
    assert found["summary"]["alarm/chosen_fall"] == "it fell"
    assert found["summary"]["result/seconds"] == 1.5
    assert found["exit_code"] == 0
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_run_that_did_not_finish_is_marked_as_failed(tmp_path):
    sink = WandbSink(TrackerConfig(mode=WandbMode.offline), "run-0a1b2c3d", pytest.fail)
    sink.start(run_info(tmp_path))
    sink.close()
    sink.close()
    assert read_wandb(tmp_path)["exit_code"] == 1


@pytest.mark.parametrize("server", ["refuses", "is silent"])
def test_an_unreachable_server_costs_a_moment_and_one_line(tmp_path, server):
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if server == "is silent":
            listener.listen()  # connections are taken and never answered
        env |= {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{listener.getsockname()[1]}"}
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", TRAIN],
            cwd=tmp_path, env=env, text=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 15  # init_timeout is 1 s; W&B's own grace periods come on top
    (line,) = done.stdout.splitlines()
    assert line.startswith("W&B cannot go online (CommError: ")
    assert line.endswith("); it is recorded in the run's folder")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert read_wandb(tmp_path / "run")["history"] == rows
    assert done.stderr == ""


def test_an_odd_folder_name_still_gives_an_id(tmp_path):
    sink = WandbSink(TrackerConfig(mode=WandbMode.offline), "x" * 90 + "a:b%c-0a1b2c3d", pytest.fail)
    sink.start(run_info(tmp_path))
    sink.close()
    run_id = read_wandb(tmp_path)["run"].run_id
    assert run_id == "x" * 50 + "a-b-c-0a1b2c3d"


def test_a_service_of_another_process_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SERVICE", f"3-1-unix-{tmp_path}/dead/socket")
    sink = WandbSink(TrackerConfig(mode=WandbMode.offline), "run-0a1b2c3d", pytest.fail)
    sink.start(run_info(tmp_path))
    sink.step({"step": 1, "loss": -0.5})
    sink.close()
    assert read_wandb(tmp_path)["history"] == [{"step": 1, "loss": -0.5}]
    assert "WANDB_SERVICE" not in os.environ


def test_a_failure_in_the_middle_gives_up_wandb_and_not_the_run(tmp_path):
    class Broken:
        def log(self, row):
            raise ConnectionError(f"lost with {row['step']}\nsecond line")

    notes: list[str] = []
    sink = WandbSink(TrackerConfig(mode=WandbMode.disabled), "run", notes.append)
    sink._run = Broken()
    for step in (1, 2):
        sink.step({"step": step})
    sink.finish({})
    sink.close()
    assert notes == ["W&B stopped (ConnectionError: lost with 1); the run keeps its own record"]


def test_an_output_that_wandb_cannot_write_is_told_in_one_line(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    notes: list[str] = []
    sink = WandbSink(TrackerConfig(mode=WandbMode.offline), "run", notes.append)
    sink.start(run_info(tmp_path / "run"))
    sink.step({"step": 1})
    sink.close()
    (note,) = notes
    assert note.startswith("W&B is left out (FileExistsError: ")


@pytest.mark.parametrize(
    ("mode", "env", "resolved"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": KEY}, "online"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_MODE": "nonsense"}, "offline"),
        ("offline", {"WANDB_API_KEY": KEY}, "offline"),
        ("online", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "online"),
        ("disabled", {"WANDB_API_KEY": KEY}, "disabled"),
        ("online", {"WANDB_API_KEY": KEY, "WANDB_DISABLED": "true"}, "disabled"),
    ],
)
def test_the_mode(mode, env, resolved, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert resolve_mode(WandbMode(mode)) is WandbMode(resolved)


def test_a_key_in_netrc_is_found(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert resolve_mode(WandbMode.auto) is WandbMode.online


def test_online_without_a_key_never_prompts():
    with pytest.raises(RuntimeError, match="no API key is configured, see wandb login"):
        resolve_mode(WandbMode.online)


def test_disabled_leaves_no_trace(tmp_path):
    sink = WandbSink(TrackerConfig(mode=WandbMode.disabled), "run", pytest.fail)
    sink.start(run_info(tmp_path))
    sink.step({"step": 1})
    sink.close()
    assert list(tmp_path.iterdir()) == []
