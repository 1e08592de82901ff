"""One run of the bundled model as a user starts it: record, per-pair files, W&B and picture hold the same curves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from wandb_reader import read_wandb

from dil_cli.dynamics.plots import draw_dynamics, dynamics_curves
from dil_cli.dynamics.probe import read_probe
from dil_cli.tracking.record import read_metrics


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dil train` on 24 of the bundled pairs, in a process of its own, W&B on as by default."""
    import os
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("user")
    argv = ["train", "data.limit=24", "optim.batch_size=4", "probe.pairs=6", "probe.times=3"]
    done = subprocess.run(
        [sys.executable, "-m", "dil_cli", *argv],
        cwd=folder, env=os.environ, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "policy = reference: lsif is -0.500000 (exact: -0.500000)" in done.stdout
    assert "chosen (140 tokens, scored): Toby's book" in done.stdout
    assert "\x1b" not in done.stdout, "control characters without a terminal"
    assert done.stderr == ""
    (run,) = (folder / "outputs").glob("tiny-gsm8k_pairs-lsif-*")
    return run


def test_all_views_agree(run_folder: Path):
    rows = read_metrics(run_folder / "metrics.jsonl")
    probes = [row for row in rows if "probe/loss" in row]
    assert [row["step"] for row in probes] == [0, 2, 4, 6]
    found = read_wandb(run_folder)
    assert found["history"] == [row for row in rows if "alarm" not in row]

    table = read_probe(run_folder / "probe").to_pandas()
    per_token = (table["chosen_logp_sum"] / table["chosen_tokens"]).groupby(table["step"]).mean()
    curves = dynamics_curves(rows)
    figure = draw_dynamics(curves, "")
    lines = [line.get_xydata().T for axes in figure.axes for line in axes.lines]
    for drawn in (curves.chosen.value, curves.rejected.value, curves.margin_N):
        assert any(np.array_equal(y, drawn) and np.array_equal(x, [0, 2, 4, 6]) for x, y in lines)
    np.testing.assert_allclose(per_token, curves.chosen.value, rtol=1e-12)
    assert curves.chosen.value.tolist() == [row["probe/logps/chosen"] for row in probes]
    assert (run_folder / "dynamics.png").read_bytes().startswith(b"\x89PNG")


def test_wandb_has_the_config_and_the_runs_name(run_folder: Path):
    found = read_wandb(run_folder)
    assert found["run"].project == "dil"
    assert found["run"].run_id == run_folder.name
    assert {"name": "lsif", "reduction": "mean", "exp_cap": 30.0}.items() <= found["config"]["loss"].items()
    assert found["config"]["optim"]["batch_size"] == 4


def test_manifest_holds_what_the_numbers_depend_on(run_folder: Path):
    manifest = json.loads((run_folder / "manifest.json").read_text())
    for key in ("weights_sha256", "source", "parameters"):
        assert manifest["model"][key]
    for key in ("hash", "tokenizer_sha256", "template_sha256", "data_sha256", "reference_sha256"):
        assert manifest[key]
    assert manifest["environment"]["packages"]["torch"]
    assert manifest["environment"]["command"].startswith("dil train "), "to be pasted"
    assert manifest["loss_at_reference"] == pytest.approx(-0.5, abs=1e-5)
    assert run_folder.name.endswith(manifest["hash"])
    assert len(manifest["probe_rows"]) == 6


def test_an_evaluation_is_added_to_the_summary(run_folder: Path, dil_here, tmp_path: Path):
    copy = tmp_path / run_folder.name
    shutil.copytree(run_folder, copy)
    before = read_wandb(copy)
    code, _, err = dil_here("eval", f"checkpoint={copy}", "benchmark.pairs=3")
    assert code == 0, err
    (record,) = copy.glob("checkpoints/*/eval/likelihood-pairs3.json")
    after = read_wandb(copy)
    added = {key: value for key, value in after["summary"].items() if key.startswith("eval/")}
    metrics = json.loads(record.read_text())["metrics"]
    assert added == {f"eval/likelihood-pairs3/{name}": pytest.approx(value) for name, value in metrics.items()}
    assert (after["history"], after["config"]) == (before["history"], before["config"])
    assert (after["run"].run_id, after["exit_code"]) == (run_folder.name, 0)
