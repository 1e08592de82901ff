"""The optimiser step: its gradient, its plan, its schedule, and how it refuses what is not finite."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from dil_cli.config.compose import compose
from dil_cli.config.schema import OptimConfig, Schedule
from dil_cli.dynamics.measure import Compute, forward_pairs, score_pairs
from dil_cli.errors import RunFailed
from dil_cli.losses import LOSSES, Combine, PreferenceLoss, Reduction
from dil_cli.train.batches import StepPlan
from dil_cli.train.loop import step_statistics
from dil_cli.train.optimiser import build_optimisers, lr_factor, set_lr
from dil_cli.train.preflight import check_reference
from dil_cli.train.step import Batch, accumulate_gradient, apply_gradient
from dil_cli.types import TokenisedPair


@pytest.fixture
def model(model_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_folder)


@pytest.fixture
def pairs() -> list[TokenisedPair]:
    numbers = np.random.default_rng(1)

    def ids(high: int) -> np.ndarray:
        return numbers.integers(0, 250, numbers.integers(1, high), dtype=np.int32)

    return [TokenisedPair(10 + i, ids(12), ids(20), ids(20)) for i in range(8)]


def compute(budget: int = 10_000) -> Compute:
    return Compute(torch.device("cpu"), bf16=False, token_budget=budget, pad_id=0)


def batch_of(pairs: list[TokenisedPair], model: PreTrainedModel) -> Batch:
    """The pairs against a reference that the policy has moved away from."""
    reference = score_pairs(model, pairs, compute())
    shift = torch.linspace(-2, 2, len(pairs))
    return Batch(pairs, reference.policy_chosen_B + shift, reference.policy_rejected_B - shift / 2 - 1)


def build(name: str) -> PreferenceLoss:
    """The loss with its defaults; of `combine` a sum of two coupled ones and one that is not."""
    return Combine(terms={"aot": 0.5, "kliep": 0.4, "sft": 0.1}) if name == "combine" else LOSSES[name]()


def close(actual: torch.Tensor, expected: torch.Tensor, rtol: float) -> bool:
    """Whether two tensors differ by less than `rtol` of the largest value expected."""
    return bool((actual - expected).abs().max() <= rtol * expected.abs().max() + 1e-12)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("budget", [1, 90, 10_000])
def test_gradient_is_that_of_the_mean_loss_whatever_the_micro_batches(name, budget, model, pairs):
    loss = build(name)
    batch = batch_of(pairs, model)
    whole = replace(
        forward_pairs(model, pairs, compute()),
        reference_chosen_B=batch.reference_chosen_B,
        reference_rejected_B=batch.reference_rejected_B,
    )
    leaves = [whole.policy_chosen_B, whole.policy_rejected_B]
    loss_B = loss(whole).loss_B
    slopes = torch.autograd.grad(loss_B.sum(), leaves, retain_graph=True, materialize_grads=True)
    loss_B.mean().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()

    gradient = accumulate_gradient(model, loss, batch, compute(budget))
    assert close(torch.cat([p.grad.flatten() for p in model.parameters()]), expected, 1e-4)
    assert close(gradient.loss_B, loss_B.detach(), 1e-4)
    assert close(gradient.slope_chosen_B, slopes[0], 1e-4)
    assert close(gradient.slope_rejected_B, slopes[1], 1e-4)
    assert gradient.logps.chosen_tokens_B.tolist() == [len(pair.chosen) for pair in pairs]
    assert step_statistics(gradient, loss)["loss"] == pytest.approx(float(loss_B.detach().mean()), rel=1e-4, abs=1e-6)


def passes_of(loss: PreferenceLoss, batch: Batch, model: PreTrainedModel, budget: int) -> int:
    """How often a step runs the model."""
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    accumulate_gradient(model, loss, batch, compute(budget))
    hook.remove()
    return len(calls)


def test_only_a_coupled_loss_over_several_micro_batches_takes_a_second_pass(model, pairs):
    batch = batch_of(pairs, model)
    assert [passes_of(LOSSES[name](), batch, model, 1) for name in ("dpo", "aot")] == [8, 16]
    assert [passes_of(LOSSES[name](), batch, model, 10_000) for name in ("dpo", "aot")] == [1, 1]


def test_a_statistic_of_the_batch_is_not_one_of_the_micro_batch(model, pairs):
    """The test above would see it: taken one by one, the pairs have other values and slopes."""
    batch = batch_of(pairs, model)
    for name in ("aot", "bco", "kliep", "kto"):
        together = accumulate_gradient(model, LOSSES[name](), batch, compute(1))
        alone = [accumulate_gradient(model, LOSSES[name](), batch.part([i]), compute(1)) for i in range(len(pairs))]
        assert not close(torch.cat([one.slope_rejected_B for one in alone]), together.slope_rejected_B, 1e-3)


def test_weights_are_the_slopes_of_the_log_ratios(model, pairs):
    batch = batch_of(pairs, model)
    mean = accumulate_gradient(model, LOSSES["ukl"](), batch, compute())
    assert mean.weight_chosen_B.tolist() == pytest.approx([1.0] * len(pairs), rel=1e-5)  # dL/ds_w = -1
    s_l_B = (mean.logps.policy_rejected_B - batch.reference_rejected_B) / mean.logps.rejected_tokens_B
    assert mean.weight_rejected_B.tolist() == pytest.approx(s_l_B.exp().tolist(), rel=1e-4)  # dL/ds_l = e^{s_l}
    total = accumulate_gradient(model, LOSSES["ukl"](reduction=Reduction.sum), batch, compute())
    assert total.weight_chosen_B.tolist() == [1.0] * len(pairs)
    assert total.weight_rejected_B.tolist() == pytest.approx(
        (s_l_B * mean.logps.rejected_tokens_B).exp().tolist(), rel=1e-4
    )


@pytest.mark.parametrize("name", ["dpo", "kto", "aot", "kliep"])
@pytest.mark.parametrize("budget", [60, 10_000])
def test_non_finite_loss_names_its_rows_before_it_reaches_a_weight(name, budget, model, pairs):
    batch = batch_of(pairs, model)
    batch.reference_chosen_B[3] = math.nan
    with pytest.raises(RunFailed, match=r"1 pairs \(rows 13\)"):
        accumulate_gradient(model, LOSSES[name](), batch, compute(budget))
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_non_finite_gradient_leaves_the_weights_and_names_the_rows(model, pairs):
    optimisers = build_optimisers(model, compose("train", []).optim)
    before = [p.detach().clone() for p in model.parameters()]

    def broken(batch: Batch) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, math.inf if batch.pairs[0].row == 15 else 0.0)

    broken(Batch([pairs[5]], None, None))
    with pytest.raises(RunFailed, match=r"not finite.*1 pairs \(rows 15\)"):
        apply_gradient(model, optimisers, Batch(pairs, None, None), 1.0, rescore=broken)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_preflight_passes_the_reference_and_refuses_another(model, pairs):
    reference = score_pairs(model, pairs, compute())
    assert check_reference(model, LOSSES["dpo"](), pairs, reference, compute()) == pytest.approx(math.log(2), abs=1e-5)
    assert check_reference(model, LOSSES["lsif"](), pairs, reference, compute()) == pytest.approx(-0.5, abs=1e-5)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.01)
    with pytest.raises(RunFailed, match="not its reference"):
        check_reference(model, LOSSES["dpo"](), pairs, reference, compute())


def test_plan_takes_every_pair_once_an_epoch_and_trains_the_short_last_batch():
    plan = StepPlan(n=10, batch_size=4, epochs=2, seed=3)
    assert (plan.steps_per_epoch, plan.total) == (3, 6)
    steps = [plan.pairs_at(step) for step in range(6)]
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(chain.from_iterable(epoch)) == list(range(10))
    assert steps[:3] != steps[3:]
    assert StepPlan(10, 4, 2, seed=4).pairs_at(0) != steps[0]
    assert [StepPlan(100, 10, epochs, 0).total for epochs in (0.01, 0.1, 0.25, 1, 1.5)] == [1, 1, 3, 10, 15]


def optim(**changes) -> OptimConfig:
    return OptimConfig(**{"lr": 1.0, "batch_size": 1, "token_budget": 1, **changes})


def test_schedule_by_hand():
    cosine = [lr_factor(step, 10, optim(warmup=0.2)) for step in range(10)]
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[6] == pytest.approx(0.5)  # half way down
    assert cosine[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    linear = [lr_factor(step, 4, optim(warmup=0.0, schedule=Schedule.linear)) for step in range(4)]
    assert linear == [1.0, 0.75, 0.5, 0.25]
    constant = [lr_factor(step, 4, optim(warmup=0.5, schedule=Schedule.constant)) for step in range(4)]
    assert constant == [0.5, 1.0, 1.0, 1.0]


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(model):
    config = compose("train", ["optim=muon"]).optim
    adamw, muon = build_optimisers(model, config)
    names = {id(p): name for name, p in model.named_parameters()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert taken | rest == set(names.values())
    assert not taken & rest
    assert all("proj" in name for name in taken)
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= rest
    set_lr([adamw, muon], 0.5)
    assert adamw.param_groups[0]["lr"] == pytest.approx(0.5 * config.lr)
    assert muon.param_groups[0]["lr"] == pytest.approx(0.5 * config.muon_lr)


def test_weight_decay_spares_biases_and_norms():
    layer = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    (adamw,) = build_optimisers(layer, optim(weight_decay=0.1))
    decayed, spared = adamw.param_groups
    assert [p.ndim for p in decayed["params"]] == [2]
    assert {p.ndim for p in spared["params"]} == {1}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_lr_factor_multiplies_every_rate(model, kind):
    plain, tripled = (
        build_optimisers(model, compose("train", [f"optim={kind}", *more]).optim)
        for more in ([], ["optim.lr_factor=3"])
    )
    peaks = [
        [group["peak_lr"] for optimiser in built for group in optimiser.param_groups] for built in (plain, tripled)
    ]
    assert len(peaks[0]) == {"adamw": 2, "muon": 3}[kind]
    assert peaks[1] == [3 * peak for peak in peaks[0]]
    assert set_lr(tripled, 0.5) == 1.5 * peaks[0][0]
