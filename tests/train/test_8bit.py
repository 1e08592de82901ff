"""AdamW with moments in 8 bits, by bitsandbytes where it is installed (`make eight-bit`)."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dil_cli.artifacts.states import States
from dil_cli.config.schema import OptimConfig, Optimiser
from dil_cli.distributed.world import ALONE
from dil_cli.dynamics.measure import Compute, Layout
from dil_cli.losses import DPO
from dil_cli.models.packed_attention import TILES, register
from dil_cli.train import optimiser as optimiser_module
from dil_cli.train.optimiser import build_optimisers, moment_bytes_8bit
from dil_cli.train.resume import restore, save_state
from dil_cli.train.step import Batch, accumulate_gradient, apply_gradient
from dil_cli.types import PairLogps

sys.path.insert(0, str(Path(__file__).parent.parent / "plan"))
import measured

needs_it = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="pip install 'dil[quant]'")
COMPUTE = Compute(torch.device("cpu"), bf16=False, token_budget=512, pad_id=0, layout=Layout.shared)


def optim(kind: Optimiser, lr: float = 1e-3) -> OptimConfig:
    return OptimConfig(kind=kind, lr=lr, batch_size=8, token_budget=512, weight_decay=0.1)


def model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    register()
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        "llama", vocab_size=301, hidden_size=72, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=TILES)


def batch() -> Batch:
    pairs = measured.pairs_of(8, 301)
    return Batch(pairs, torch.zeros(8), torch.zeros(8))


def steps(policy: torch.nn.Module, optimisers: list[torch.optim.Optimizer], number: int) -> list[float]:
    losses = []
    for _ in range(number):
        gradient = accumulate_gradient(policy, DPO(), batch(), COMPUTE)
        losses.append(float(gradient.loss_B.mean()))
        apply_gradient(policy, optimisers, batch(), 1.0, rescore=lambda b: None)
    return losses


def test_without_the_extra_it_is_said_before_training(
    dil_here, small_run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(optimiser_module, "find_spec", lambda name: None)
    code, _, err = dil_here("train", "optim=adamw_8bit", *small_run)
    assert code == 2
    assert err.splitlines() == [
        "error: moments in 8 bits need bitsandbytes, which is not installed",
        "where: optim.kind=adamw_8bit",
        "fix:   pip install 'dil[quant]', or optim=adamw",
    ]
    assert not list(tmp_path.glob("outputs/local-local-*"))


def test_moments_by_hand():
    """Below 4,096 numbers in float32; else a byte each, and a float32 for each 256 of them or rest."""
    sizes = [torch.nn.Parameter(torch.zeros(*shape)) for shape in [(10, 10), (64, 64), (100, 77)]]
    assert moment_bytes_8bit(sizes) == 2 * (4 * 100 + (4096 + 4 * 16) + (7700 + 4 * 31))


@needs_it
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_it_keeps_is_what_the_plan_counts(dtype: torch.dtype):
    policy = model(dtype)
    optimisers = build_optimisers(policy, optim(Optimiser.adamw_8bit))
    steps(policy, optimisers, 1)
    kept = [x for state in optimisers[0].state.values() for key, x in state.items() if key in
            {"state1", "state2", "absmax1", "absmax2"}]  # fmt: skip
    assert sum(x.nbytes for x in kept) == moment_bytes_8bit(policy.parameters())


@needs_it
def test_it_trains_as_adamw_does():
    results = {}
    for kind in (Optimiser.adamw, Optimiser.adamw_8bit):
        policy = model()
        start = {name: p.detach().clone() for name, p in policy.named_parameters()}
        losses = steps(policy, build_optimisers(policy, optim(kind)), 12)
        moved = torch.cat([(p.detach() - start[name]).flatten() for name, p in policy.named_parameters()])
        results[kind] = (losses, moved)
    (exact, way), (rounded, other) = results.values()
    assert exact[0] == rounded[0]
    assert exact[-1] < 0.5 * exact[0]
    assert rounded[-1] == pytest.approx(exact[-1], rel=0.1)
    assert float(torch.nn.functional.cosine_similarity(way, other, dim=0)) > 0.98
    assert not torch.equal(way, other)


@needs_it
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_goes_on_to_the_last_bit(tmp_path: Path, dtype: torch.dtype):
    whole = model(dtype)
    optimisers = build_optimisers(whole, optim(Optimiser.adamw_8bit))
    steps(whole, optimisers, 3)
    nothing = PairLogps(*(torch.zeros(1) for _ in range(4)))
    states = States(tmp_path)
    save_state(states, 3, {}, whole, optimisers, batch(), nothing, ALONE)
    steps(whole, optimisers, 3)

    later = model(dtype)
    others = build_optimisers(later, optim(Optimiser.adamw_8bit))
    state = states.newest(pytest.fail)
    assert state is not None
    restore(state, later, others)
    steps(later, others, 3)
    for (name, a), b in zip(whole.named_parameters(), later.parameters(), strict=True):
        assert torch.equal(a, b), name


@needs_it
def test_a_whole_run(dil_here, small_run):
    code, out, err = dil_here("train", "optim=adamw_8bit", *small_run, "checkpoint.resume_minutes=0")
    assert code == 0, err
    assert "no alarm" in out
