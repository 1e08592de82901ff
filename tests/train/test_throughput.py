"""Where a step's seconds go, and what part of the peak they reach."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from dil_cli.dynamics.measure import Compute, Layout, forward_pairs
from dil_cli.models import logps
from dil_cli.models.devices import DEVICES, match_gpu
from dil_cli.models.packed_attention import TILES, register
from dil_cli.tracking.record import read_metrics
from dil_cli.tracking.summary import step_numbers
from dil_cli.train import clock as clock_module
from dil_cli.train.clock import Part, StepClock
from dil_cli.train.throughput import MEASURED, Meter, StepWork
from dil_cli.types import TokenisedPair

COMPUTE = Compute(torch.device("cpu"), bf16=False, token_budget=256, pad_id=0, layout=Layout.shared)
SHAPES = {
    "llama": {"num_key_value_heads": 2},
    "gpt_neox": {},
    "qwen2": {"num_key_value_heads": 1, "tie_word_embeddings": True},
}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    moment = [100.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: moment[0])
    return moment


def test_a_second_belongs_to_the_innermost_part(now: list[float]):
    clock = StepClock()
    now[0] = 200.0
    clock.begin()
    now[0] += 1  # data
    with clock.part(Part.compute):
        now[0] += 10
        with clock.part(Part.communication):
            now[0] += 3
        now[0] += 20
    now[0] += 2  # data
    with clock.part(Part.update):
        now[0] += 4
    assert (clock.spent(Part.compute), clock.spent(Part.update), clock.spent(Part.communication)) == (30, 4, 3)
    assert (clock.waited, clock.seconds) == (3, 40)
    clock.begin()
    now[0] += 5
    assert (clock.spent(Part.compute), clock.waited, clock.seconds) == (0, 5, 5)


def test_a_part_ends_with_what_is_raised_in_it(now: list[float]):
    clock = StepClock()
    with suppress(KeyError), clock.part(Part.compute):
        now[0] += 7
        raise KeyError
    now[0] += 1
    assert (clock.spent(Part.compute), clock.waited) == (7, 1)


def model_of(kind: str, **changes: object) -> torch.nn.Module:
    register()
    shape = AutoConfig.for_model(
        kind, vocab_size=300, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        **SHAPES[kind], **changes,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(shape, dtype=torch.float32, attn_implementation=TILES)


def pairs_of(*lengths: tuple[int, int, int]) -> list[TokenisedPair]:
    draw = np.random.default_rng(0)
    return [
        TokenisedPair(i, *(draw.integers(0, 300, n, dtype=np.int32) for n in three)) for i, three in enumerate(lengths)
    ]


@pytest.mark.parametrize("kind", SHAPES)
def test_work_is_what_torch_counts(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Of the products with weights to the last FLOP; attention's tiles compute more than the triangle that must be."""
    # Counted is what must be computed, also where an earlier test chose products that take rows in multiples.
    monkeypatch.setattr(logps, "shape_step", lambda device: 1)
    model, pairs = model_of(kind), pairs_of((9, 20, 14), (30, 7, 25), (12, 11, 2))
    meter = Meter(model, COMPUTE)
    with FlopCounterMode(display=False) as counter:
        scored = forward_pairs(model, pairs, COMPUTE)
    forward = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    head = 2 * 48 * 300 * sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    attention = (
        4
        * 3
        * 48
        * sum(
            p * (p + 1) / 2 + sum((n - 1) * p + (n - 1) * n / 2 for n in (c, r))
            for p, c, r in ((len(pair.prompt), len(pair.chosen), len(pair.rejected)) for pair in pairs)
        )
    )
    weights = sum(flops for op, flops in forward.items() if "bmm" not in op)
    assert meter.flops(pairs) == pytest.approx(3 * (weights + attention), rel=1e-12)
    assert attention < sum(flops for op, flops in forward.items() if "bmm" in op)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(scored.policy_chosen_B.sum() + scored.policy_rejected_B.sum())
    backward = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    again = head  # the logits are computed a second time, which is no work of the model's
    assert sum(flops for op, flops in backward.items() if "bmm" not in op) - again == 2 * weights


def test_frozen_weights_need_one_product_less():
    model = model_of("llama")
    pairs = pairs_of((9, 20, 14))
    whole = Meter(model, COMPUTE).flops(pairs)
    model.requires_grad_(False)
    assert Meter(model, COMPUTE).flops(pairs) == pytest.approx(whole * 2 / 3)


def test_the_row_of_several_processes():
    meter = Meter(model_of("llama"), COMPUTE)
    meter.peak = 1000.0
    works = [
        StepWork(pairs=6, tokens=600, flops=2000, seconds=4.0, data=0.4, communication=1.0, memory_gb=3.0),
        StepWork(pairs=4, tokens=200, flops=1000, seconds=5.0, data=0.5, communication=2.0, memory_gb=2.0),
    ]
    row = meter.row(works)
    assert {key: row[key] for key in MEASURED} == {
        "pairs_per_s": 2, "tokens_per_s": 160, "mfu": 3000 / (1000 * 5 * 2), "data_wait": pytest.approx(0.1),
        "communication": pytest.approx(3 / 9), "memory_gb": 3,
    }  # fmt: skip
    assert (row["rank0/tokens_per_s"], row["rank0/mfu"], row["rank0/communication"]) == (150, 0.5, 0.25)
    assert (row["rank1/pairs_per_s"], row["rank1/data_wait"], row["rank1/memory_gb"]) == (0.8, 0.1, 2)
    assert len(row) == 3 * len(MEASURED)
    alone = meter.row(works[:1])
    assert set(alone) == set(MEASURED) - {"communication"}
    assert alone["mfu"] == 0.5


def test_no_part_of_a_peak_that_nobody_knows():
    meter = Meter(model_of("llama"), COMPUTE)
    assert meter.peak is None
    row = meter.row([meter.work(pairs_of((3, 4, 5)), 10, StepClock())])
    assert "mfu" not in row


def test_the_console_says_what_matters():
    row = {"loss": 0.5, "pairs_per_s": 2.0, "tokens_per_s": 100.0, "mfu": 0.417, "data_wait": 0.01}
    assert step_numbers(row) == "loss 0.5000  2 pairs/s  100 tokens/s  42% of peak"
    waits = row | {"data_wait": 0.2, "communication": 0.1}
    assert step_numbers(waits).endswith("42% of peak  10% communication  20% waiting for data")


def test_peaks_are_those_of_the_device_that_the_driver_names():
    known = {
        "NVIDIA H100 80GB HBM3": "h100-80", "NVIDIA H100 PCIe": "h100-pcie-80", "NVIDIA H200": "h200-141",
        "NVIDIA A100-SXM4-40GB": "a100-40", "NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA A10": "a10-24",
        "NVIDIA L40S": "l40s-48", "NVIDIA GeForce RTX 4090": "rtx4090-24", "Tesla V100-SXM2-32GB": "v100-32",
        "NVIDIA B200": "b200-180", "NVIDIA A100 80GB PCIe": "a100-pcie-80", "NVIDIA A100-PCIE-40GB": "a100-pcie-40",
    }  # fmt: skip
    for name, device in known.items():
        assert match_gpu(name) is DEVICES[device], name
    others = ("NVIDIA A10G", "NVIDIA GH200 480GB", "NVIDIA GB200", "NVIDIA GeForce RTX 4090 D", "NVIDIA H100 NVL")
    for name in (*others, "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "Tesla T4"):
        assert match_gpu(name) is None, name


def test_a_run_records_them_and_a_profile(dil_here, small_run, tmp_path: Path):
    code, out, err = dil_here("train", *small_run, "profile=true")
    assert code == 0, err
    (folder,) = (tmp_path / "outputs").glob("local-local-*")
    steps = [row for row in read_metrics(folder / "metrics.jsonl") if "lr" in row]
    assert len(steps) == 9
    for row in steps:
        assert set(MEASURED) - set(row) == {"mfu", "communication"}
        assert 0 <= row["data_wait"] < 0.5
    trace = folder / "profile" / "trace.json.gz"
    assert f"profile {trace}" in out
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert [name for name in names if name.startswith("ProfilerStep")] == [f"ProfilerStep#{n}" for n in (3, 4, 5)]
    assert "aten::mm" in names
    assert any(name.startswith("Optimizer.step#AdamW") for name in names)


def test_a_profile_is_no_other_run(dil_here, small_run, tmp_path: Path):
    for words in ([], ["profile=true"]):
        code, out, _ = dil_here("train", *small_run, "optim.epochs=0.3", *words)
        assert code == 0
    assert "finished already" in out
    code, out, _ = dil_here("train", *small_run, "optim.epochs=0.3", "seed=1", "profile=true")
    assert code == 0
    assert "no profile: it takes 6 steps, this run has 3 to go" in out
    assert not list((tmp_path / "outputs").glob("*/profile"))
