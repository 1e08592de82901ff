"""`dil eval` on real checkpoints: the run's own numbers again, and an error where something is not the run's now."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

from dil_cli.evaluate.likelihood import per_pair
from dil_cli.evaluate.show import _p
from dil_cli.report.intervals import sign_flip_p
from dil_cli.types import PairLogps

MEASURED = (
    "logps/chosen", "logps/rejected", "delta/chosen", "delta/rejected", "delta/margin", "accuracy", "accuracy_mean",
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


def probe_of(run: Path, name: str) -> pyarrow.Table:
    """The pairs of a record, from the one file that its folder has."""
    (path,) = run.glob(f"**/eval/{name}/step-*.parquet")
    table = pyarrow.parquet.read_table(path)
    assert path.name == f"step-{table.column('step')[0].as_py():06d}.parquet"
    return table


def test_the_numbers_are_those_at_the_end_of_the_run(trained: Path, evaluate):
    end = json.loads((trained / "result.json").read_text())["end"]
    for checkpoint in (trained, next((trained / "checkpoints").iterdir())):
        record = evaluate(f"checkpoint={checkpoint}")
        assert {name: record["metrics"][name] for name in MEASURED} == pytest.approx(
            {name: end[f"probe/{name}"] for name in MEASURED}, rel=1e-5, abs=1e-7
        )
        assert record["more"]["margin"] == pytest.approx(end["probe/margin"], rel=1e-5)
        low, high = record["intervals"]["delta/margin"]
        pairs = probe_of(checkpoint, "likelihood")
        assert pairs.column("step").to_pylist() == [9] * record["pairs"]
        for side in ("chosen", "rejected", "margin"):
            mean = np.mean(pairs.column(f"delta_{side}").to_numpy())
            assert mean == pytest.approx(record["metrics"][f"delta/{side}"]), "of each pair"
        assert low < record["metrics"]["delta/margin"] < high
        weighed = sum(bucket["pairs"] * bucket["metrics"]["delta/margin"] for bucket in record["by_length"])
        assert weighed / record["pairs"] == pytest.approx(record["metrics"]["delta/margin"])


def test_a_part_of_the_pairs(trained: Path, evaluate):
    assert evaluate(f"checkpoint={trained}", "benchmark.pairs=2", "benchmark.buckets=9")["pairs"] == 2


def test_a_trial_leaves_the_record_alone(trained: Path, evaluate, model_folder: Path, tmp_path: Path):
    evaluate(f"checkpoint={trained}")
    (path,) = trained.glob("checkpoints/*/eval/likelihood.json")
    kept = {file: file.read_bytes() for file in [path, *path.parent.glob("likelihood/*")]}
    (tmp_path / "more.jsonl").write_bytes((tmp_path / "pairs.jsonl").read_bytes())
    others = [
        ["benchmark.pairs=2"], ["data=local", "data.path=more.jsonl", *LENGTHS], [f"against={model_folder}"],
        [f"reference={model_folder}"],
    ]  # fmt: skip
    names = [evaluate(f"checkpoint={trained}", *words)["benchmark"] for words in others]
    assert len({"likelihood", *names}) == 5
    assert {file.stem for file in path.parent.glob("*.json")} == {"likelihood", *names}
    assert {file.name for file in path.parent.iterdir() if file.is_dir()} == {"likelihood", *names}
    assert {file: file.read_bytes() for file in kept} == kept
    assert evaluate(f"checkpoint={trained}", *others[0])["benchmark"] == names[0]
    assert len(list(path.parent.glob("*.json"))) == 5, "the same command has the same name"


def test_a_checkpoint_against_the_model_it_came_from(trained: Path, evaluate, model_folder: Path):
    record = evaluate(f"checkpoint={trained}", f"against={model_folder}")
    assert record["against"]["name"] == model_folder.name
    gap = record["against"]["gaps"]
    for name in ("chosen", "rejected", "margin"):
        assert gap[name]["mean"] == pytest.approx(record["metrics"][f"delta/{name}"], rel=1e-5, abs=1e-7)
        assert 0 < gap[name]["p"] <= 1


def test_a_margin_per_token_is_told_from_one_of_whole_responses():
    # A long chosen response falls by 2 nats in 8 tokens, the rejected one by 1 nat in 2: per token the margin grows.
    now, tokens, before = (
        [torch.tensor([value]) for value in values] for values in ((-10.0, -5.0), (8, 2), (-8.0, -4.0))
    )
    found = per_pair(PairLogps(*now, *tokens, *before), "sum")
    assert (found["accuracy"], found["accuracy_mean"]) == ([0.0], [1.0])


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


@pytest.mark.slow
def test_every_run_of_a_sweep_is_measured_and_reported(dil_here, small_run, tmp_path: Path):
    words = ["loss=ukl,dpo", "seed=0,1", "optim.lr=1e-3,3e-3", "optim.epochs=0.3", "probe.pairs=1"]
    code, _, err = dil_here("sweep", *small_run, *words)
    assert code == 0, err
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    code, out, err = dil_here("eval", f"checkpoint={sweep}")
    assert code == 0, err
    assert out.count("record ") == 8
    start = small_run[1].partition("=")[2]
    assert [line for line in out.splitlines() if line.startswith(f"scoring {start}")] == [f"scoring {start}: 3 ..."]
    assert f"{start}: 1 of 4 pairs from the cache" in out, "which the runs have measured"

    rows = [[cell.strip() for cell in line.split("|")] for line in out.splitlines() if line.count("|") > 6]
    assert rows[0][:3] == ["checkpoint", "loss", "pairs"]
    means = {row[0]: row for row in rows if "mean of 2 seeds" in row[0]}
    assert len(means) == 4, "of each loss and rate"
    records = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/*/checkpoints/*/eval/likelihood.json")]
    low_rate = [record for record in records if record["checkpoint"]["loss"] == "dpo"]
    shown = sorted(row[rows[0].index("rejected")] for name, row in means.items() if name.startswith("dpo"))
    everyone = np.mean([float(value) for value in shown])
    assert everyone == pytest.approx(np.mean([record["metrics"]["logps/rejected"] for record in low_rate]), abs=1e-3)

    code, out, err = dil_here("eval", f"checkpoint={sweep}", "benchmark.pairs=3")
    assert code == 0, err
    assert f"scoring {start}" not in out, "a later command has them too"
    code, _, err = dil_here("report", str(sweep), "--format", "csv", "--out", "report")
    assert code == 0, err
    table = (tmp_path / "report" / "tables" / "evaluations.csv").read_text()
    for words in ("likelihood,delta/margin,", "likelihood-pairs3,delta/margin,"):
        assert words in table


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


def test_a_drifted_template_that_breaks_prompts_is_called_drifted(trained: Path, dil_here):
    file = next((trained / "checkpoints").iterdir()) / "chat_template.jinja"
    file.write_text("{{ messages | length }}" + file.read_text())
    code, _, err = dil_here("eval", f"checkpoint={trained}")
    assert code == 2
    assert err.startswith(f"error: the template of {trained.name} is not what its run had")
    code, _, err = dil_here("eval", f"checkpoint={trained}", "accept=[template]")
    assert code == 2
    assert "the chat template writes the prompt differently" in err
    assert err.splitlines()[2] == "fix:   bring back the run's template, which was accepted as another"


def test_an_adapter_is_as_likely_as_the_model_it_was_merged_into(
    evaluate, dil_here, adapters, merged: Path, model_folder: Path, pairs_file: Path, capfd
):
    words = ["data=local", f"data.path={pairs_file}", *LENGTHS]
    ours, theirs = (evaluate(f"checkpoint={path}", *words) for path in (adapters["one"], merged))
    start = evaluate(f"checkpoint={model_folder}", *words)
    for name in ("logps/chosen", "logps/rejected"):
        assert ours["metrics"][name] == pytest.approx(theirs["metrics"][name], rel=1e-6)
        assert abs(ours["metrics"][name] - start["metrics"][name]) > 1e-4, "or the adapter was left out"
    assert ours["reference"]["path"] == str(model_folder), "changes are since its base"
    assert ours["metrics"]["delta/chosen"] == pytest.approx(
        ours["metrics"]["logps/chosen"] - start["metrics"]["logps/chosen"], abs=1e-6
    )
    assert evaluate(f"checkpoint={model_folder}", f"against={adapters['two']}", *words)["against"]["name"] == "two"
    (adapters["one"] / "adapter_model.safetensors").unlink()
    code, _, err = dil_here("eval", f"checkpoint={adapters['one']}", *words)
    assert code == 2
    assert err == (
        "error: the adapter has no adapter_model.safetensors, and dil loads no pickle\n"
        f"where: {adapters['one']}\n"
        "fix:   save it again with a present peft: model.save_pretrained(folder)\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["checkpoint=/nowhere"], "there is no /nowhere"),
        (["checkpoint=outputs/nothing"], "there is no outputs/nothing"),
        (["checkpoint=outputs/nothing", "output=elsewhere"], "outputs/nothing belongs to no run"),
        (["checkpoint=bundled:tiny", "against=/nope"], "where: against=/nope\nfix:   against=outputs/RUN"),
        (["checkpoint=bundled:tiny", "against=empty"], "where: against=empty\nfix:   against=outputs/RUN"),
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
    assert _p(sign_flip_p(np.full(40, 0.1))) == "p <= 0.0001", "no more than 10,000 flips can say"
    assert _p(0.0234) == "p 0.023"
