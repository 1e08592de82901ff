"""`peft=` and `dil export` as a user types them: train, go on, measure, merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

RUN = ("loss=ukl", "probe.pairs=999", "optim.lr=3e-3")


@pytest.fixture
def train(dil_here, small_run, tmp_path: Path):
    """`train("peft=lora")` -> the run's folder."""

    def run(*words: str) -> Path:
        before = set((tmp_path / "outputs").glob("*/result.json"))
        code, _, err = dil_here("train", *small_run, *RUN, *words)
        assert code == 0, err
        (result,) = set((tmp_path / "outputs").glob("*/result.json")) - before
        return result.parent

    return run


def checkpoint_of(run: Path) -> Path:
    (folder,) = (run / "checkpoints").iterdir()
    return folder


def end_of(run: Path) -> dict[str, float]:
    return json.loads((run / "result.json").read_text())["end"]


def likelihood(dil_here, *words: str) -> dict[str, float]:
    code, out, err = dil_here("eval", *words)
    assert code == 0, err
    record = next(line for line in out.splitlines() if line.startswith("record "))
    return json.loads(Path(record.removeprefix("record ")).read_text())["metrics"]


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_trains_from_its_base_and_scores_the_same_merged_and_alone(
    kind: str, train, dil_here, small_run, model_folder: Path
):
    run = train(f"peft={kind}")
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["probe/delta/chosen"] == 0, "a new adapter changes nothing, so the reference is the base"
    folder, end = checkpoint_of(run), end_of(run)
    assert abs(end["probe/delta/margin"]) > 1e-3, "or nothing was learnt"
    assert not (folder / "model.safetensors").exists()
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert any("q_proj.lora_A" in name for name in names)
    assert not any("lm_head" in name for name in names)

    code, _, err = dil_here("export", str(run), "--merge", "--to", "merged")
    assert code == 0, err
    base, merged = (AutoModelForCausalLM.from_pretrained(path) for path in (model_folder, "merged"))
    assert not torch.equal(*(m.model.layers[0].mlp.up_proj.weight for m in (base, merged)))
    assert torch.equal(*(m.model.embed_tokens.weight for m in (base, merged)))

    code, _, err = dil_here("export", str(run), "--to", "alone")
    assert code == 0, err
    same_pairs = [word for word in small_run if word.startswith(("data", "model.max"))]
    for words in ([f"checkpoint={run}"], ["checkpoint=merged", *same_pairs], ["checkpoint=alone", *same_pairs]):
        metrics = likelihood(dil_here, *words)
        for name in ("logps/chosen", "logps/rejected"):
            assert metrics[name] == pytest.approx(end[f"probe/{name}"], abs=1e-5), words

    code, _, err = dil_here("export", str(run), "--to", "alone")
    assert (code, len(err.splitlines())) == (2, 3)


def test_training_that_goes_on_from_an_adapter_has_that_adapter_as_its_reference(train, dil_here):
    first = train("peft=lora")
    second = train("peft=lora", f"model.path={checkpoint_of(first)}")
    start = json.loads((second / "metrics.jsonl").read_text().splitlines()[0])
    assert start["probe/delta/chosen"] == 0
    ours, theirs = (load_file(checkpoint_of(run) / "adapter_model.safetensors") for run in (first, second))
    assert ours.keys() == theirs.keys()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("logps/chosen", "logps/rejected"):
        assert start[f"probe/{name}"] == pytest.approx(end_of(first)[f"probe/{name}"], abs=1e-6)


def test_the_token_budget_changes_no_adapter(train):
    runs = [train("peft=lora", f"optim.token_budget={budget}", f"name=tokens{budget}") for budget in (64, 4096)]
    ours, theirs = (load_file(checkpoint_of(run) / "adapter_model.safetensors") for run in runs)
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-5)


def test_four_bits_without_their_library_are_refused_before_training(dil_here, small_run, tmp_path: Path):
    code, _, err = dil_here("train", *small_run, "peft=qlora")
    assert (code, len(err.splitlines()[-3:])) == (2, 3)
    assert err.splitlines()[-3].startswith("error: weights in four bits need")
    assert not list((tmp_path / "outputs").glob("*/manifest.json"))


def test_weights_that_are_cut_or_not_finite_are_not_exported(train, dil_here, tmp_path: Path):
    folder = checkpoint_of(train("peft=lora"))
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file(weights | {name: torch.full_like(weights[name], float("nan"))}, file)
    for merge in ([], ["--merge"]):
        code, _, err = dil_here("export", str(folder), *merge, "--to", "out")
        assert code == 2
        assert err.startswith("error: the weight ")
        assert " is not finite\n" in err
    file.write_bytes(file.read_bytes()[:1000])
    for more in ([], ["--dtype", "bf16"]):
        code, _, err = dil_here("export", str(folder), *more, "--to", "out")
        assert code == 2
        assert err.startswith("error: its weights cannot be read: ")
        assert len(err.splitlines()) == 3
    assert not (tmp_path / "out").exists()
