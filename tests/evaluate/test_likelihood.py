"""`dil eval` on real checkpoints: the run's own numbers again, and an error where something is not the run's now."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from dil_cli.report.intervals import sign_flip_p

MEASURED = (
    "logps/chosen", "logps/rejected", "delta/chosen", "delta/rejected", "delta/margin", "accuracy",
)  # fmt: skip
LENGTHS = ["model.max_length=128", "model.max_prompt_length=64"]


@pytest.fixture
def trained(dil_here, small_run, tmp_path: Path) -> Path:
    """A run whose probe set is all that it held out."""
    code, _, err = dil_here("train", *small_run, "loss=dpo", "probe.pairs=999", "optim.lr=3e-3")
    assert code == 0, err
    (folder,) = (tmp_path / "outputs").glob("*/result.json")
    return folder.parent


@pytest.fixture
def evaluate(dil_here):
    """`evaluate("checkpoint=...")` -> the record written beside the checkpoint."""

    def run(*argv: str) -> dict:
        code, out, err = dil_here("eval", *argv)
        assert code == 0, err
        written = next(line for line in out.splitlines() if line.startswith("record "))
        return json.loads(Path(written.removeprefix("record ")).read_text())

    return run


def test_the_numbers_are_those_at_the_end_of_the_run(trained: Path, evaluate):
    end = json.loads((trained / "result.json").read_text())["end"]
    for checkpoint in (trained, next((trained / "checkpoints").iterdir())):
        record = evaluate(f"checkpoint={checkpoint}")
        assert {name: record["metrics"][name] for name in MEASURED} == pytest.approx(
            {name: end[f"probe/{name}"] for name in MEASURED}, rel=1e-5, abs=1e-7
        )
        assert record["more"]["margin"] == pytest.approx(end["probe/margin"], rel=1e-5)
        low, high = record["intervals"]["delta/margin"]
        assert low < record["metrics"]["delta/margin"] < high
        weighed = sum(bucket["pairs"] * bucket["metrics"]["delta/margin"] for bucket in record["by_length"])
        assert weighed / record["pairs"] == pytest.approx(record["metrics"]["delta/margin"])


def test_a_part_of_the_pairs(trained: Path, evaluate):
    assert evaluate(f"checkpoint={trained}", "benchmark.pairs=2", "benchmark.buckets=9")["pairs"] == 2


def test_a_checkpoint_against_the_model_it_came_from(trained: Path, evaluate, model_folder: Path):
    record = evaluate(f"checkpoint={trained}", f"against={model_folder}")
    assert record["against"]["name"] == model_folder.name
    gap = record["against"]["gaps"]
    for name in ("chosen", "rejected", "margin"):
        assert gap[name]["mean"] == pytest.approx(record["metrics"][f"delta/{name}"], rel=1e-5, abs=1e-7)
        assert 0 < gap[name]["p"] <= 1


def test_a_model_of_no_run_has_no_change(evaluate, dil_here, small_run, model_folder: Path, tmp_path: Path):
    words = [f"checkpoint={model_folder}", "data=local", f"data.path={tmp_path / 'pairs.jsonl'}", *LENGTHS]
    record = evaluate(*words)
    assert record["reference"] is None
    assert record["metrics"].keys() == {"logps/chosen", "logps/rejected", "prefers_chosen"}
    record = evaluate(*words, f"reference={model_folder}")
    assert record["metrics"]["delta/margin"] == pytest.approx(0, abs=1e-6)
    assert record["metrics"]["accuracy"] == 0.5
    code, _, err = dil_here("eval", f"checkpoint={model_folder}")
    assert code == 2
    assert "belongs to no run, so nothing says which pairs are meant" in err


def test_every_run_of_a_sweep_is_measured_and_reported(dil_here, small_run, tmp_path: Path):
    code, _, err = dil_here("sweep", *small_run, "loss=ukl,dpo", "optim.epochs=1")
    assert code == 0, err
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    code, out, err = dil_here("eval", f"checkpoint={sweep}")
    assert code == 0, err
    assert out.count("record ") == 2
    assert out.count("scoring") < 5, "the starting model is scored once"
    code, _, err = dil_here("report", str(sweep), "--format", "csv", "--out", "report")
    assert code == 0, err
    assert "likelihood/delta/margin" in (tmp_path / "report" / "tables" / "evaluations.csv").read_text()


@pytest.mark.parametrize("drifted", ["data", "template", "tokenizer", "reference"])
def test_what_is_not_the_runs_any_more_is_refused(drifted, trained: Path, dil_here, tmp_path: Path, small_run):
    checkpoint = next((trained / "checkpoints").iterdir())
    manifest = json.loads((trained / "manifest.json").read_text())
    if drifted == "data":
        pairs = tmp_path / "pairs.jsonl"
        pairs.write_text(pairs.read_text().replace("1", "2"))
    elif drifted == "reference":
        weights = Path(manifest["config"]["model"]["path"]) / "model.safetensors"
        moved = tmp_path / "moved"
        moved.mkdir()
        for file in weights.parent.iterdir():
            (moved / file.name).write_bytes(file.read_bytes())
        tensors = load_file(weights)
        save_file({name: value * 1.01 for name, value in tensors.items()}, moved / weights.name, {"format": "pt"})
        manifest["config"]["model"]["path"] = str(moved)
        (trained / "manifest.json").write_text(json.dumps(manifest))
    else:
        manifest[f"{drifted}_sha256"] = "0" * 64
        (trained / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = dil_here("eval", f"checkpoint={checkpoint}")
    assert code == 2
    assert f"accept=[{drifted}]" in err.splitlines()[2]
    assert not (checkpoint / "eval").exists()
    code, _, err = dil_here("eval", f"checkpoint={checkpoint}", f"accept=[{drifted}]")
    assert code == 0, err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["checkpoint=/nowhere"], "there is no /nowhere"),
        (["checkpoint=pairs.jsonl"], "pairs.jsonl is a file"),
        (["checkpoint=empty"], "empty holds neither a run nor a model"),
        ([], "checkpoint must be set"),
        (["checkpoint=m", "benchmark=likelyhood"], "did you mean likelihood?"),
        (["checkpoint=m", "benchmark.buckets=0"], "benchmark.buckets is 0, it must be above 0"),
        (["checkpoint=m", "accept=[dat]"], "name some of data, template, tokenizer, reference"),
        (["checkpoint=m", "bucket=3"], "no key 'bucket'"),
    ],
)
def test_errors_have_three_lines(words, said, dil_here, small_run, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    code, _, err = dil_here("eval", *words)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) <= 3


def test_sign_flips_against_every_flip():
    gap = np.array([0.3, 0.1, -0.05, 0.2, 0.25, 0.15, -0.1, 0.3])
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(gap))).reshape(len(gap), -1)
    exact = (np.abs(signs.T @ gap) >= abs(gap.sum()) - 1e-12).mean()
    assert sign_flip_p(gap) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(np.full(40, 0.1)) < 0.001
