"""What `dil plan` computes, against what a training step really takes and against numbers by hand."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).parent))
import measured

from benchmarks.limit import must_do
from benchmarks.models import MISTRAL_7B
from benchmarks.pairs import Pair
from dil_cli.config.adapting import AdapterKind, PeftConfig
from dil_cli.config.compose import compose
from dil_cli.config.distributing import Sharding
from dil_cli.config.paths import conf_dir
from dil_cli.config.schema import ModelConfig, OptimConfig, Optimiser, WeightType
from dil_cli.data.packing import pack_pairs, packed_tokens
from dil_cli.errors import DilError
from dil_cli.models.devices import DEVICES, find_device
from dil_cli.models.flops import forward_flops
from dil_cli.models.load import check_length
from dil_cli.plan.geometries import empty_model, geometry
from dil_cli.plan.lengths import Lengths
from dil_cli.plan.memory import OVERHEAD, Setup, memory
from dil_cli.plan.trace import Traced, trace_step
from dil_cli.types import TokenisedPair

NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA = NO_IDS | {
    "model_type": "llama", "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
NEOX = NO_IDS | {
    "model_type": "gpt_neox", "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 2048,
    "num_hidden_layers": 8, "num_attention_heads": 8, "max_position_embeddings": 1024,
}  # fmt: skip
SMALL = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
KINDS = {"llama": LLAMA, "neox": NEOX}
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}
"""glibc gives freed blocks back, so that resident memory is what is held and not what was."""
PARAMETERS = {
    "mistral7b": 7_241_732_096, "llama3_8b": 8_030_261_248, "qwen05b": 494_032_768, "pythia28": 2_775_208_960,
}  # fmt: skip


def job_of(kind: str, checkpointing: bool, bf16: bool = False, rows: int = 2, **sizes: int) -> dict[str, Any]:
    return {
        "shape": KINDS[kind] | sizes, "pairs": 4, "rows": rows, "checkpointing": checkpointing, "bf16": bf16,
    }  # fmt: skip


def model_config(**values: Any) -> ModelConfig:
    return ModelConfig(
        path="x", **{"lr": 1.0, "batch_size": 8, "max_length": 8, "max_prompt_length": 4, "token_budget": 8} | values
    )


def adapter(kind: AdapterKind = AdapterKind.lora) -> PeftConfig:
    return PeftConfig(kind=kind, r=4, alpha=8, dropout=0.0, lr_factor=10.0)


def planned(job: dict[str, Any], **how: Any) -> Traced:
    optim = OptimConfig(lr=1e-5, batch_size=8, token_budget=8)
    model = model_config(gradient_checkpointing=job["checkpointing"])
    pairs = measured.pairs_of(job["pairs"], job["shape"]["vocab_size"])
    how = {"bf16": job["bf16"], "gpu": False, "several": job["rows"] > 1} | how
    return trace_step(AutoConfig.for_model(**job["shape"]), model, optim, pairs, **how)


# Measured for real


@pytest.mark.parametrize(
    ("kind", "checkpointing", "bf16"),
    [("llama", False, False), ("neox", True, True)]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(KINDS, (False, True), (False, True))
        if case not in {("llama", False, False), ("neox", True, True)}
    ],
)
def test_a_step_takes_what_torch_gives_away_in_it(kind: str, checkpointing: bool, bf16: bool):
    job = job_of(kind, checkpointing, bf16, **SMALL)
    assert planned(job).total == pytest.approx(measured.allocated(job)["allocated"], rel=0.05)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="make eight-bit")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_with_8_bit_moments_takes_what_torch_gives_away_in_it(dtype: str):
    job = job_of("llama", False, dtype == "bfloat16", **SMALL) | {"optim": "adamw_8bit", "dtype": dtype}
    optim = OptimConfig(kind=Optimiser.adamw_8bit, lr=1e-5, batch_size=8, token_budget=8)
    shape, pairs = AutoConfig.for_model(**job["shape"]), measured.pairs_of(4, 1000)
    held = WeightType.bf16 if dtype == "bfloat16" else WeightType.fp32
    step = trace_step(shape, model_config(dtype=held), optim, pairs, bf16=job["bf16"], gpu=False, several=True)
    assert step.total == pytest.approx(measured.allocated(job)["allocated"], rel=0.05)


@pytest.mark.parametrize("kind", ["llama", pytest.param("neox", marks=pytest.mark.slow)])
def test_a_step_in_pure_bf16_takes_what_torch_gives_away_in_it(kind: str):
    """Weights, gradients and moments of two bytes, and no copies."""
    job = job_of(kind, True, True, **SMALL) | {"dtype": "bfloat16"}
    optim = OptimConfig(lr=1e-5, batch_size=8, token_budget=8)
    model = model_config(dtype=WeightType.bf16, gradient_checkpointing=True)
    shape, pairs = AutoConfig.for_model(**job["shape"]), measured.pairs_of(4, 1000)
    step = trace_step(shape, model, optim, pairs, bf16=True, gpu=False, several=True)
    assert step.gradients == pytest.approx(step.weights, rel=0.01)  # which have the rotary table too
    assert step.moments == pytest.approx(2 * step.weights, rel=0.01)
    assert step.total == pytest.approx(measured.allocated(job)["allocated"], rel=0.05)


def test_8_bit_moments_are_a_quarter():
    """Of float32 ones, and a scale for each 256; norms are too small for it."""
    shape = AutoConfig.for_model(**(LLAMA | {"num_hidden_layers": 1}))
    pairs = measured.pairs_of(2, 1000)
    moments = {
        kind: trace_step(
            shape, model_config(), OptimConfig(kind=kind, lr=1e-5, batch_size=8, token_budget=8), pairs,
            bf16=False, gpu=False, several=True,
        ).moments
        for kind in (Optimiser.adamw, Optimiser.adamw_8bit)
    }  # fmt: skip
    assert moments[Optimiser.adamw_8bit] / moments[Optimiser.adamw] == pytest.approx(0.25 * (1 + 4 / 256), rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_one_row_has_no_gradient_when_it_begins(kind: str):
    job = job_of(kind, False, rows=1, **SMALL)
    assert planned(job).total == pytest.approx(measured.allocated(job)["allocated"], rel=0.05)


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_autograd_saves_is_what_the_plan_says(kind: str, bf16: bool):
    job = job_of(kind, False, bf16, **SMALL)
    assert planned(job).after_forward == pytest.approx(measured.saved(job)["saved"], rel=0.01)


def resident_of(job: dict[str, Any]) -> int:
    script = str(Path(measured.__file__))
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(
        [sys.executable, script, json.dumps(job | {"what": "resident"})],
        env=os.environ | GIVES_BACK | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(json.loads(done.stdout)["resident"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    ("kind", "checkpointing"),
    [
        ("llama", False),
        pytest.param("llama", True, marks=pytest.mark.slow),
        pytest.param("neox", False, marks=pytest.mark.slow),
        pytest.param("neox", True, marks=pytest.mark.slow),
    ],
)
def test_a_process_grows_by_what_the_plan_says(kind: str, checkpointing: bool):
    job = job_of(kind, checkpointing) | {"pairs": 2}
    step = planned(job)
    assert 30e6 < step.parameters < 40e6
    assert step.total == pytest.approx(resident_of(job), rel=0.15)


# Real geometries


@pytest.mark.parametrize("name", PARAMETERS)
def test_real_geometries_have_their_published_size(name: str):
    config = compose("train", [f"model={name}"]).model
    with torch.device("meta"):
        model = empty_model(geometry(config), config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    check_length(model, config.max_length, config.max_prompt_length)
    positions = model.config.max_position_embeddings
    with pytest.raises(DilError, match=f"has {positions} positions"):
        check_length(model, positions + 1, 1)


@pytest.mark.parametrize("name", PARAMETERS)
def test_real_geometries_take_packed_rows_beyond_their_positions(name: str):
    config = compose("train", [f"model={name}"])
    shape = geometry(config.model)
    shape.num_hidden_layers = 1
    length, prompt = config.data.max_length, config.data.max_prompt_length
    number = shape.max_position_embeddings // length + 1
    pairs = [
        TokenisedPair(i, *(np.zeros(n, dtype=np.int32) for n in (prompt, length - prompt, 9))) for i in range(number)
    ]
    row = pack_pairs(pairs, True, "cpu")
    assert len(row.input_ids_T) > shape.max_position_embeddings - length
    assert int(row.positions_T.max()) == length - 2  # the last token is only predicted
    step = trace_step(shape, config.model, config.optim, pairs, bf16=True, gpu=True, several=True)
    assert step.tokens == sum(map(packed_tokens, pairs)) == len(row.input_ids_T)


def test_every_model_of_conf_is_known_without_the_hub():
    names = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
    assert len(names) > 4
    for name in names:
        if name != "local":
            assert geometry(compose("train", [f"model={name}"]).model).vocab_size > 0


def test_an_unknown_model_is_asked_of_the_hub():
    with pytest.raises(DilError, match="the hub cannot be reached"):
        geometry(replace(model_config(), path="nobody/nothing"))


# By hand

STEP = Traced(
    weights=400, gradients=400, moments=800, copies=150, head=60, activations=90, after_forward=120,
    parameters=100, trained=100, layer=20, outside=20, matrices=70, tokens=8,
)  # fmt: skip
ALONE = Setup(processes=1, kind=Sharding.none, compute_bytes=2, held_bytes=4, gpu=True)


def test_one_process_holds_everything():
    assert memory(STEP, ALONE).total == 400 + 400 + 800 + 150 + 60 + 90 + OVERHEAD["gpu"]


def test_ddp_holds_the_gradients_twice():
    held = memory(STEP, replace(ALONE, kind=Sharding.ddp, processes=4))
    assert (held.weights, held.gradients, held.optimiser) == (400, 800, 800)


@pytest.mark.parametrize("kind", [Sharding.fsdp2, Sharding.zero3])
def test_sharded_processes_hold_a_part_and_gather_two_layers(kind: Sharding):
    held = memory(STEP, replace(ALONE, kind=kind, processes=4))
    assert (held.weights, held.gradients, held.optimiser, held.copies) == (100, 100, 200, 0)
    assert held.gathered == 2 * (20 + 2 * 20) + 4 * (20 + 20)
    assert (held.activations, held.head) == (90, 60)


def test_four_bits_are_an_eighth_of_float32_and_a_scale():
    step = replace(STEP, trained=10, gradients=40, moments=80)
    held = memory(step, replace(ALONE, adapter=adapter(AdapterKind.qlora)))
    assert held.weights == pytest.approx(400 - 60 * 4 + 60 * 4.127 / 8)
    assert held.copies == 150 + 2 * 20


def test_adapters_train_rank_times_both_sides():
    step = planned(job_of("llama", False, **SMALL), adapter=adapter())
    heads = 64 + 2 * 2 * (64 // 8) + 64  # query, key and value, output
    assert step.trained == 2 * 4 * (4 * 64 + heads + 3 * (64 + 160))
    assert step.gradients == 4 * step.trained
    assert step.moments == pytest.approx(8 * step.trained, rel=0.01)  # a step count each


def test_work_is_that_of_the_benchmarks():
    shape = geometry(replace(model_config(), path="mistralai/Mistral-7B-v0.1"))
    sizes = [(45, 420, 256), (7, 2, 90)]
    ids = [[np.zeros(n, dtype=np.int32) for n in three] for three in sizes]
    forward = forward_flops(shape, MISTRAL_7B.body_weights, [TokenisedPair(0, *three) for three in ids])
    limit = must_do(MISTRAL_7B, [Pair(*three) for three in ids])
    assert (forward.body, forward.attention, forward.head) == (limit.body, limit.attention, limit.head)


def test_matrices_are_what_the_benchmarks_multiply_with():
    config = compose("train", ["model=mistral7b"])
    pairs = measured.pairs_of(1, 100)
    shape = geometry(config.model)
    shape.num_hidden_layers = 4
    step = trace_step(shape, config.model, config.optim, pairs, bf16=True, gpu=True, several=False)
    assert step.matrices == MISTRAL_7B.body_weights // 8


def test_a_row_is_filled_to_the_budget():
    lengths = Lengths(100, measured.pairs_of(3, 50), "")
    for tokens in (100, 300, 512, 1000):
        assert sum(map(packed_tokens, lengths.row(tokens))) == pytest.approx(tokens, abs=2)


@pytest.mark.slow
def test_muon_holds_one_moment_of_the_hidden_matrices():
    config = compose("train", ["optim=muon"])
    shape = geometry(config.model)
    pairs = measured.pairs_of(2, 100)
    muon = trace_step(shape, config.model, config.optim, pairs, bf16=False, gpu=False, several=True)
    adamw = trace_step(shape, config.model, compose("train", []).optim, pairs, bf16=False, gpu=False, several=True)
    assert adamw.moments - muon.moments == pytest.approx(4 * muon.matrices, rel=0.01)


def test_weights_in_two_bytes_have_no_copies():
    job = job_of("llama", False, True, **SMALL)
    shape, pairs = AutoConfig.for_model(**job["shape"]), measured.pairs_of(4, 1000)
    optim = OptimConfig(lr=1e-5, batch_size=8, token_budget=8)
    half = trace_step(shape, model_config(dtype=WeightType.bf16), optim, pairs, bf16=True, gpu=False, several=True)
    whole = planned(job)
    assert half.copies == 0 < whole.copies
    assert 2 * half.weights == pytest.approx(whole.weights, rel=0.01)


# The command


def test_unknown_devices_are_answered_with_those_known():
    with pytest.raises(DilError, match="did you mean h100-80"):
        find_device("H100_80", True)
    with pytest.raises(DilError, match=", ".join(DEVICES)):
        find_device("abacus", True)


def test_it_prints_a_table(dil_here: Any):
    code, out, err = dil_here("plan", "gpu=v100-32", "distributed.processes=2", "data.limit=100")
    assert (code, err) == (0, "")
    for words in (
        "2 x v100-32 (ddp)",
        "2,164,416 parameters",
        "of 32: fits",
        "GPU-hours",
        "resume states",
        "100 pairs",
    ):
        assert words in out


@pytest.mark.slow
def test_it_prints_numbers_and_says_what_to_change(dil_here: Any, monkeypatch: pytest.MonkeyPatch):
    small = replace(DEVICES["v100-32"], name="small", memory=1.6)
    monkeypatch.setitem(DEVICES, "small", small)
    code, out, _ = dil_here("plan", "gpu=small", "data.limit=100", "optim.token_budget=8192", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["memory"]["total"] == sum(size for name, size in plan["memory"].items() if name != "total")
    assert plan["fits"] == (plan["memory"]["total"] <= 1.6e9)
    assert not plan["fits"]
    words = [change["words"].partition("=")[0] for change in plan["changes"]]
    assert "model.gradient_checkpointing" in words
    assert "peft" in words
    if plan["largest_token_budget"] is not None:
        code, out, _ = dil_here(
            "plan", "gpu=small", "data.limit=100", f"optim.token_budget={plan['largest_token_budget']}", "--json"
        )
        assert json.loads(out)["fits"]


@pytest.mark.slow
def test_a_share_smaller_than_the_token_budget_has_a_largest_one_too(dil_here: Any):
    words = ["model=mistral7b", "data=ultrafeedback", "distributed.kind=fsdp2", "distributed.processes=32"]
    plan = json.loads(dil_here("plan", *words, "gpu=h100-80", "--json")[1])
    assert plan["fits"]
    assert plan["row_tokens"] < 4096, "a process reads less than the budget in a step"
    assert plan["largest_token_budget"] >= plan["row_tokens"]


@pytest.mark.slow
def test_weights_in_four_bits_take_less(dil_here: Any):
    held = [
        json.loads(dil_here("plan", "gpu=h100-80", "data.limit=40", f"peft={kind}", "model.dtype=bf16", "--json")[1])
        for kind in ("lora", "qlora")
    ]
    lora, qlora = (plan["memory"]["weights"] for plan in held)
    frozen = held[0]["parameters"] - held[0]["trained"]
    assert 0.4 * lora < qlora < lora  # the tiny model's embedding, a good part of it, stays in two bytes
    assert lora - qlora < frozen * (2 - 4.127 / 8)


def test_errors_have_three_lines(dil_here: Any):
    for words, said in [
        (["gpu=h100"], "did you mean h100-80?"),
        (["mfu=2"], "mfu is 2.0, it must be a part of the peak"),
        (["model.attention=sdpa", "gpu=h100-80"], "only packed rows are planned for"),
        (["data=local", "data.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["peft=adapter"], "no 'adapter' in peft"),
        (["peft.r=8"], "peft.r is 8, it must stay null unless peft=lora, dora or qlora"),
    ]:
        code, _, err = dil_here("plan", *words)
        assert code == 2, words
        assert said in err, err
        assert len(err.splitlines()) == 3


@pytest.mark.slow
def test_llama_on_eight_gpus(dil_here: Any):
    code, out, _ = dil_here("plan", "model=llama3_8b", "data=ultrafeedback", "distributed.processes=8", "gpu=h100-80")
    assert code == 0
    assert "8,030,261,248 parameters" in out
    assert "8 x h100-80 (fsdp2)" in out
    assert "of 80: fits" in out
