"""Whole runs of a small model: the record, its views, and what a run must never do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dil_cli.dynamics.plots import dynamics_curves
from dil_cli.dynamics.probe import read_probe
from dil_cli.tracking.record import read_metrics
from dil_cli.train.throughput import MEASURED


def only_folder(output: Path) -> Path:
    (folder,) = (path for path in output.iterdir() if path.name != "cache" and path.is_dir())
    return folder


def numbers(folder: Path) -> list[dict]:
    """The record without what a clock measured."""
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize("loss", ["lsif", "bce", "ukl", "dpo", "slic", "simpo", "sft"])
def test_each_loss_leaves_a_whole_run(loss, dil_here, small_run, tmp_path: Path):
    code, out, err = dil_here("train", f"loss={loss}", *small_run)
    assert code == 0, err
    folder = only_folder(tmp_path / "outputs")
    assert folder.name.startswith(f"local-local-{loss}-")
    assert str(folder) in out

    rows = read_metrics(folder / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    probes = [row for row in rows if "probe/loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 10))
    assert [row["step"] for row in probes] == [0, 3, 6, 9]
    assert all(np.isfinite([v for v in row.values() if isinstance(v, float)]).all() for row in rows)
    assert probes[0]["probe/delta/chosen"] == 0
    # It learns: the loss on held-out pairs ends below where it began.
    assert probes[-1]["probe/loss"] < probes[0]["probe/loss"]

    # The views hold the record's numbers: per-pair files and the arrays of the picture.
    table = read_probe(folder / "probe").to_pandas()
    for row in probes:
        pairs = table[table["step"] == row["step"]]
        assert (pairs["chosen_logp_sum"] / pairs["chosen_tokens"]).mean() == pytest.approx(row["probe/logps/chosen"])
        assert pairs["delta_margin"].mean() == pytest.approx(row["probe/delta/margin"], abs=1e-12)
    curves = dynamics_curves(rows)
    assert curves.step_N.tolist() == [0, 3, 6, 9]
    assert curves.chosen.value.tolist() == [row["probe/logps/chosen"] for row in probes]
    assert curves.rejected.value.tolist() == [row["probe/logps/rejected"] for row in probes]
    assert (folder / "dynamics.png").stat().st_size > 10_000

    result = json.loads((folder / "result.json").read_text())
    assert result["end"]["probe/delta/chosen"] == probes[-1]["probe/delta/chosen"]


def test_checkpoint_is_the_trained_policy(dil_here, small_run, tmp_path: Path):
    dil_here("train", *small_run, "checkpoint.every=4")
    folder = only_folder(tmp_path / "outputs")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-000004", "step-000008", "step-000009",
    ]  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    checkpoint = folder / result["checkpoint"]
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert model.dtype == torch.float32
    assert tokenizer.chat_template is not None
    assert json.loads((checkpoint / "dil_manifest.json").read_text())["step"] == 9

    # Its log-probs, computed from text by transformers alone, are those of the last measurement.
    last = pq.read_table(folder / "probe" / "step-000009.parquet").to_pylist()[0]
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    pair = pairs[last["row"] - 1]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": pair["prompt"]}], add_generation_prompt=True, tokenize=False
    )
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    body = tokenizer(pair["chosen"] + "<end>", add_special_tokens=False)["input_ids"]
    logps = torch.log_softmax(model(torch.tensor([head + body])).logits[0].double(), dim=-1)
    total = sum(logps[len(head) - 1 + i, token].item() for i, token in enumerate(body))
    assert last["chosen_tokens"] == len(body)
    assert last["chosen_logp_sum"] == pytest.approx(total, rel=1e-5)


def test_same_config_is_done_once_another_seed_is_another_run(dil_here, small_run, tmp_path: Path):
    dil_here("train", *small_run)
    folder = only_folder(tmp_path / "outputs")
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    code, out, _ = dil_here("train", *small_run, "optim.token_budget=77")
    assert code == 0
    assert "finished already" in out
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before
    dil_here("train", *small_run, "seed=1")
    folders = sorted(path for path in (tmp_path / "outputs").iterdir() if path.name != "cache")
    assert len(folders) == 2
    first, second = (numbers(path) for path in folders)
    assert first[0] == second[0]  # the same held-out pairs, the same start
    assert first[1] != second[1]  # another order


def test_two_runs_are_identical_and_micro_batches_do_not_matter(dil_here, small_run, tmp_path: Path):
    for name, budget in (("a", 4096), ("b", 4096), ("one pair at a time", 1)):
        code, _, err = dil_here("train", *small_run, f"hydra.run.dir='{name}'", f"optim.token_budget={budget}")
        assert code == 0, err
    a, b, alone = (numbers(tmp_path / name) for name in ("a", "b", "one pair at a time"))
    assert a == b
    assert len(a) == len(alone) > 0
    for row, other in zip(a, alone, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert other[key] == pytest.approx(value, rel=1e-3, abs=2e-5), (row["step"], key)


@pytest.mark.parametrize("choice", ["model.dtype=bf16", "precision=bf16", "model.gradient_checkpointing=true"])
def test_memory_savers_train_too(choice, dil_here, small_run, tmp_path: Path):
    code, out, err = dil_here("train", *small_run, choice)
    assert code == 0, err
    folder = only_folder(tmp_path / "outputs")
    result = json.loads((folder / "result.json").read_text())
    assert result["end"]["probe/loss"] < result["start"]["probe/loss"]
    held = AutoModelForCausalLM.from_pretrained(folder / result["checkpoint"], dtype="auto").dtype
    assert held == (torch.bfloat16 if choice == "model.dtype=bf16" else torch.float32)
    assert ("weights in bfloat16" in out) == (choice == "model.dtype=bf16")


def test_checkpointing_gives_the_same_run(dil_here, small_run, tmp_path: Path):
    for name, choice in (("plain", "false"), ("saved", "true")):
        dil_here("train", *small_run, f"model.gradient_checkpointing={choice}", f"hydra.run.dir={name}")
    plain, saved = numbers(tmp_path / "plain"), numbers(tmp_path / "saved")
    assert len(plain) == len(saved) == 13
    for row, other in zip(plain, saved, strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_several_runs_from_one_command(dil_here, small_run, tmp_path: Path):
    code, _, err = dil_here("train", "-m", *small_run, "loss=ukl,dpo", "seed=0,1")
    assert code == 0, err
    assert len(list((tmp_path / "outputs").glob("*/result.json"))) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", "pairs.jsonl"}


def test_label_noise_flips_the_training_pairs_only(dil_here, small_run, tmp_path: Path):
    dil_here("train", *small_run, "data.label_noise=0.25")
    manifest = json.loads((only_folder(tmp_path / "outputs") / "manifest.json").read_text())
    assert len(manifest["flipped_rows"]) == round(0.25 * manifest["pairs"]["train"])
    assert not set(manifest["flipped_rows"]) & set(manifest["probe_rows"])


def test_interrupted_run_starts_anew_in_its_folder(dil_here, small_run, tmp_path: Path):
    dil_here("train", *small_run)
    folder = only_folder(tmp_path / "outputs")
    whole = numbers(folder)
    (folder / "result.json").unlink()
    with (folder / "metrics.jsonl").open("a") as record:
        record.write('{"step": 99, "loss"')
    code, out, _ = dil_here("train", *small_run)
    assert code == 0
    assert f"an unfinished run is in {folder}: starting over" in out
    assert numbers(folder) == whole


@pytest.mark.parametrize("holds", ["other files", "another run"])
def test_a_folder_in_use_is_left_alone(holds, dil_here, small_run, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    if holds == "other files":
        (tmp_path / "mine" / "thesis.txt").write_text("precious")
    else:
        dil_here("train", *small_run, "seed=1", "hydra.run.dir=mine")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").rglob("*")}
    code, _, err = dil_here("train", *small_run, "hydra.run.dir=mine")
    assert code == 2
    assert ("holds no run" if holds == "other files" else "holds another run") in err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").rglob("*")} == before


def test_non_finite_loss_stops_names_the_pairs_and_keeps_a_checkpoint(dil_here, small_run, tmp_path: Path):
    # -e^{s_w} on sums, unguarded: 60 bytes that are easy to learn raise s_w past 88, where float32 ends.
    rows = [{"prompt": f"say it {i}", "chosen": "a" * 60, "rejected": f"{i}"} for i in range(40)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    overflow = [
        "loss.reduction=sum",
        "loss.exp_cap=null",
        "optim.lr=0.02",
        "optim.epochs=20",
        "optim.schedule=constant",
    ]
    code, _, err = dil_here("train", *small_run, "data.path=long.jsonl", *overflow)
    folder = only_folder(tmp_path / "outputs")
    assert code == 1
    assert "not finite" in err
    assert "rows " in err
    assert len(err.splitlines()) == 3
    failure = json.loads((folder / "failure.json").read_text())
    assert not (folder / "result.json").exists()
    kept = folder / "checkpoints" / f"step-{failure['step'] - 1:06d}"
    weights = AutoModelForCausalLM.from_pretrained(kept)
    assert all(parameter.isfinite().all() for parameter in weights.parameters())


def test_the_guard_carries_the_same_run_to_its_end(dil_here, small_run, tmp_path: Path):
    rows = [{"prompt": f"say it {i}", "chosen": "a" * 60, "rejected": f"{i}"} for i in range(40)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    overflow = ["loss.reduction=sum", "optim.lr=0.02", "optim.epochs=20", "optim.schedule=constant"]
    code, _, err = dil_here("train", *small_run, "data.path=long.jsonl", *overflow)
    assert code == 0, err
    rows = read_metrics(only_folder(tmp_path / "outputs") / "metrics.jsonl")
    assert max(row["guard/frac"] for row in rows if "loss" in row) > 0


def test_demonstrations_train_under_sft(dil_here, small_run, tmp_path: Path):
    rows = [json.dumps({"question": f"{i} plus 1 is", "answer": f"{i + 1}"}) for i in range(30)]
    (tmp_path / "qa.jsonl").write_text("\n".join(rows))
    code, _, err = dil_here("train", *small_run, "data.path=qa.jsonl")
    assert code == 2
    assert "loss=sft" in err
    code, _, err = dil_here("train", *small_run, "data.path=qa.jsonl", "loss=sft")
    assert code == 0, err
    last = read_metrics(only_folder(tmp_path / "outputs") / "metrics.jsonl")[-1]
    assert last["probe/delta/chosen"] > 0
    assert "probe/delta/rejected" not in last


@pytest.mark.slow
def test_ctrl_c_ends_with_130(small_run, tmp_path: Path):
    import os
    import signal
    import subprocess
    import sys

    process = subprocess.Popen(
        [sys.executable, "-m", "dil_cli", "train", *small_run, "optim.epochs=500"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
        # A suite that runs in the background of a shell ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not (only_folder(tmp_path / "outputs") / "result.json").exists()


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_the_run(small_run, tmp_path: Path):
    import os
    import subprocess
    import sys

    process = subprocess.Popen(
        [sys.executable, "-m", "dil_cli", "train", *small_run],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ,
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=120) == 0
    assert (only_folder(tmp_path / "outputs") / "result.json").is_file()


def test_a_finished_run_draws_its_picture_again(dil_here, small_run, tmp_path: Path):
    dil_here("train", *small_run)
    picture = only_folder(tmp_path / "outputs") / "dynamics.png"
    first = picture.read_bytes()
    picture.unlink()
    dil_here("train", *small_run)
    assert picture.read_bytes() == first
