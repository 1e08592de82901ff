"""Numbers stay numbers: however a batch is cut, whatever the length, and whatever breaks on the way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks import stability
from benchmarks.stability import Bench, Cell, Watched
from dil_cli.config.schema import OptimConfig
from dil_cli.dynamics.layout import choose_layout
from dil_cli.dynamics.measure import Compute, Layout, score_pairs, split_batch
from dil_cli.errors import RunFailed
from dil_cli.losses import LOSSES
from dil_cli.losses.common import Reduction
from dil_cli.models.load import load_policy
from dil_cli.tracking.record import read_metrics
from dil_cli.train import prepare, run
from dil_cli.train.loop import step_statistics
from dil_cli.train.optimiser import build_optimisers
from dil_cli.train.step import Batch, WeightsLost, accumulate_gradient, apply_gradient
from dil_cli.train.throughput import MEASURED
from dil_cli.types import PairLogps, TokenisedPair

DIL = ("lsif", "bce", "ukl")

# ---- one batch, cut in three ways


@pytest.fixture
def model(model_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_folder)


@pytest.fixture
def eight() -> list[TokenisedPair]:
    """Eight pairs of one size, so that a budget of tokens is a number of pairs."""
    numbers = np.random.default_rng(5)

    def ids(count: int) -> np.ndarray:
        return numbers.integers(0, 250, count, dtype=np.int32)

    return [TokenisedPair(10 + i, ids(6), ids(10), ids(8)) for i in range(8)]


@pytest.mark.parametrize("layout", [Layout.padded, Layout.shared])
@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("name", DIL)
def test_8x1_is_4x2_is_1x8(name, reduction, layout, model, eight):
    """Loss, gradient and every metric of the same pairs: in one micro-batch, two at a time, one at a time."""
    loss = LOSSES[name](reduction=reduction)
    whole = Compute(torch.device("cpu"), bf16=False, token_budget=10_000, pad_id=0)
    if layout is Layout.shared:
        whole = choose_layout(model, whole, 128).compute
        assert whole.layout is Layout.shared
    reference = score_pairs(model, eight, whole)
    shift_B = torch.linspace(-1, 1, 8) * (1 if reduction is Reduction.sum else 8)
    batch = Batch(eight, reference.policy_chosen_B + shift_B, reference.policy_rejected_B - shift_B / 2)
    found: dict[int, tuple[Tensor, dict[str, float]]] = {}
    for size in (1, 2, 8):
        compute = replace(whole, token_budget=budget_of(size, eight, whole))
        assert [len(group) for group in split_batch(eight, compute)] == [size] * (8 // size)
        model.zero_grad()
        gradient = accumulate_gradient(model, loss, batch, compute)
        weights = torch.cat([p.grad.flatten() for p in model.parameters()])
        found[size] = weights, step_statistics(gradient, loss)
    expected, metrics = found[8]
    assert metrics["loss"] != 0
    assert len(metrics) > 10
    for size in (1, 2):
        weights, other = found[size]
        assert float((weights - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
        assert other == pytest.approx(metrics, rel=1e-5, abs=1e-6)


def budget_of(size: int, pairs: list[TokenisedPair], compute: Compute) -> int:
    """The smallest budget that puts `size` of the pairs into a micro-batch."""
    return next(
        budget for budget in range(1, 1000)
        if len(split_batch(pairs, replace(compute, token_budget=budget))[0]) == size
    )  # fmt: skip


# ---- seeds


def only_run(output: Path) -> Path:
    (folder,) = (path for path in output.iterdir() if (path / "manifest.json").is_file())
    return folder


def left_by(folder: Path) -> dict[str, Any]:
    """What a run leaves, less times and the names of folders."""
    rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in read_metrics(folder / "metrics.jsonl")]
    weights = next((folder / "checkpoints").glob("*/model.safetensors")).read_bytes()
    probes = [path.read_bytes() for path in sorted((folder / "probe").iterdir())]
    return {"rows": rows, "weights": weights, "probes": probes}


def test_one_seed_gives_one_run_to_the_last_bit_and_another_seed_another_order(dil_here, small_run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, _, err = dil_here("train", *small_run, f"seed={seed}", f"output={name}")
        assert code == 0, err
    a, b, c = (left_by(only_run(tmp_path / name)) for name in "abc")
    assert a == b
    assert a["weights"] != c["weights"]
    # The same start on the same held-out pairs, then other pairs in the first step.
    assert a["rows"][0] == c["rows"][0]
    assert a["rows"][1]["logps/chosen"] != c["rows"][1]["logps/chosen"]


# ---- a small part of benchmarks/stability.py


@pytest.fixture
def short_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("far", "default"):
        monkeypatch.setitem(stability.STARTS, name, replace(stability.STARTS[name], steps=2))


@pytest.mark.usefixtures("short_starts")
@pytest.mark.parametrize(
    ("length", "precision"),
    [(128, "bf16"), pytest.param(512, "fp32", marks=pytest.mark.slow),
     pytest.param(2048, "fp32", marks=pytest.mark.slow), pytest.param(2048, "bf16", marks=pytest.mark.slow)],
)  # fmt: skip
def test_the_guards_hold_and_without_them_it_breaks(length, precision, monkeypatch):
    monkeypatch.setitem(stability.PAIRS, length, 1)
    bench = Bench(length, precision)
    held = [bench.run(Cell("far", length, loss, "sum", precision, guard=True)) for loss in DIL]
    assert [(row["not_finite"], row["stopped"], row["weights_not_finite"]) for row in held] == [(0, None, 0)] * 3
    assert all(row["largest_log_ratio"] > 100 for row in held)
    assert [row["guard_max"] for row in held] == [1, 0, 1]  # bce needs none
    for loss in ("lsif", "ukl"):
        broken = bench.run(Cell("far", length, loss, "sum", precision, guard=False))
        assert broken["not_finite"] > 0
        assert broken["stopped"].startswith("the loss or its slope is not finite on")
        assert (broken["steps"], broken["weights_not_finite"]) == (0, 0)
    # Per token the exponents stay small: the guard changes nothing there.
    guarded, bare = (bench.run(Cell("default", length, "lsif", "mean", precision, guard)) for guard in (True, False))
    for row in (guarded, bare):
        assert (row["not_finite"], row["stopped"], row["guard_max"]) == (0, None, 0)
    assert guarded["largest_log_ratio"] == bare["largest_log_ratio"]


def test_the_bench_counts_what_is_not_finite():
    logps_B = torch.tensor([0.0, 50.0, 200.0], requires_grad=True)
    zero_B, one_B = torch.zeros(3), torch.ones(3, dtype=torch.long)
    watched = Watched(LOSSES["lsif"](reduction=Reduction.sum, exp_cap=None))
    pair = PairLogps(logps_B, zero_B.clone().requires_grad_(), one_B, one_B, zero_B, zero_B)
    out = watched(pair)
    assert watched.largest == 200
    assert watched.not_finite == 1  # -e^200; e^50 fits
    torch.autograd.grad(out.loss_B.sum(), [pair.policy_chosen_B, pair.policy_rejected_B])
    assert watched.not_finite == 2  # and its slope


def test_the_bench_goes_on_where_it_was(tmp_path):
    cell = Cell("far", 128, "lsif", "sum", "fp32", guard=True)
    row = {**vars(cell), "not_finite": 0}
    (tmp_path / "cells.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row)[:30])
    assert stability.read(tmp_path / "cells.jsonl") == {cell: row}
    cells = list(stability.grid(stability.PAIRS, stability.STARTS))
    assert len(cells) == len(set(cells)) == 5 * 2 * 3 * 2 * (2 + 2 + 1)
    assert cell in cells


# ---- NaN, planted


def finite(folder: Path) -> dict[str, Tensor]:
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())
    return weights


def failed(code: int, err: str, output: Path) -> tuple[Path, dict[str, Any]]:
    """A run that ended as it should: exit code 1, three lines, a reason, no result."""
    assert code == 1, err
    assert len(err.splitlines()) == 3
    folder = only_run(output)
    assert not (folder / "result.json").exists()
    return folder, json.loads((folder / "failure.json").read_text())


def test_nan_in_a_gradient_keeps_the_weights_before_it(dil_here, small_run, tmp_path, monkeypatch):
    dil_here("train", *small_run, "output=whole", "checkpoint.every=4")
    build: Callable[..., Any] = build_optimisers

    def planted(model: PreTrainedModel, config: OptimConfig) -> list[torch.optim.Optimizer]:
        calls = []

        def spoil(gradient: Tensor) -> Tensor:
            calls.append(1)
            return gradient * math.nan if len(calls) > 4 else gradient

        model.get_parameter("model.layers.1.mlp.up_proj.weight").register_hook(spoil)
        return build(model, config)

    monkeypatch.setattr(run, "build_optimisers", planted)
    code, _, err = dil_here("train", *small_run, "output=broken")
    folder, failure = failed(code, err, tmp_path / "broken")
    assert failure["step"] == 5
    assert "the gradient is not finite (norm nan); by itself already on 4 pairs (rows " in err
    kept, whole = (finite(path / "checkpoints" / "step-000004") for path in (folder, only_run(tmp_path / "whole")))
    assert kept.keys() == whole.keys()
    assert all(torch.equal(kept[name], whole[name]) for name in kept)


def test_a_response_that_gives_nan_is_named(dil_here, small_run, tmp_path, monkeypatch):
    """The embedding of a byte that one chosen response has is spoiled once the model is loaded."""
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    rows[20]["chosen"] = "~."
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def planted(config: Any) -> Any:
        policy = load_policy(config)
        (token,) = policy.tokenizer("~", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            policy.model.get_input_embeddings().weight[token] = math.nan
        return policy

    monkeypatch.setattr(prepare, "load_trained", lambda config, peft, seed: planted(config))
    code, _, err = dil_here("train", *small_run, "optim.batch_size=40", "data.heldout_fraction=0.01")
    _, failure = failed(code, err, tmp_path / "outputs")
    assert "the loss or its slope is not finite on 1 pairs (rows 21)" in failure["what"]


def test_weights_that_an_update_breaks_are_named_and_not_kept(dil_here, small_run, tmp_path):
    """An eps below what float32 holds divides 0 by 0 where a token has no gradient."""
    code, _, err = dil_here("train", *small_run, "optim.eps=1e-60")
    folder, _ = failed(code, err, tmp_path / "outputs")
    assert "weights that are not finite (model.embed_tokens.weight)" in err
    assert not (folder / "checkpoints").exists()


def test_a_weight_that_an_update_breaks_is_named(model, eight):
    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            with torch.no_grad():
                model.get_parameter("model.norm.weight")[3] = math.inf

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = Batch(eight, None, None)
    with pytest.raises(WeightsLost, match=r"not finite \(model.norm.weight\)"):
        apply_gradient(model, [Broken(model.parameters())], batch, 1.0, rescore=lambda part: None)


def test_a_label_that_is_not_finite_is_named(model, eight):
    compute = Compute(torch.device("cpu"), bf16=False, token_budget=10_000, pad_id=0)
    reference = score_pairs(model, eight, compute)
    reference.policy_rejected_B[5] = math.inf
    batch = Batch(eight, reference.policy_chosen_B, reference.policy_rejected_B)
    for name in DIL:
        # s_l = -inf, where every one of them has a finite loss and slope.
        with pytest.raises(RunFailed, match=r"1 pairs \(rows 15\)"):
            accumulate_gradient(model, LOSSES[name](), batch, compute)
