"""A packed step against the plainest one there is: single rows, dense attention, whole vocabulary, float64.

The rows are not padded: in float64 transformers' eager attention gives NaN where a sliding window holds only padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import TAKE_PACKED_ROWS, VOCABULARY, WINDOW, build
from torch import Tensor
from transformers import PreTrainedModel

from dil_cli.dynamics.layout import choose_layout
from dil_cli.dynamics.measure import Compute, Layout, score_pairs, split_batch
from dil_cli.losses import DPO, LOSSES, LSIF, PreferenceLoss
from dil_cli.train.step import Batch, accumulate_gradient
from dil_cli.types import PairLogps, TokenisedPair

COMPUTE = Compute(torch.device("cpu"), bf16=False, token_budget=10_000, pad_id=0)


def random_pairs(seed: int, count: int = 9, longest: int = 40) -> list[TokenisedPair]:
    """Lengths from 1 up; prompts that are longer than the sliding window, and shorter."""
    numbers = np.random.default_rng(seed)

    def ids() -> np.ndarray:
        return numbers.integers(2, VOCABULARY, numbers.integers(1, longest), dtype=np.int32)

    pairs = [TokenisedPair(i, ids(), ids(), ids()) for i in range(count)]
    pairs[0] = replace(pairs[0], prompt=numbers.integers(2, VOCABULARY, 3 * WINDOW, dtype=np.int32))
    return pairs


def naive_gradient(model: PreTrainedModel, loss: PreferenceLoss, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses (B,) and the gradient of their mean; `model` is float64 with eager attention."""
    sums = []
    for side in ("chosen", "rejected"):
        for pair in batch.pairs:
            ids_T = torch.from_numpy(np.concatenate([pair.prompt, getattr(pair, side)]).astype(np.int64))
            logps_TV = model(input_ids=ids_T[None], use_cache=False).logits[0].log_softmax(dim=-1)
            at = torch.arange(len(pair.prompt) - 1, len(ids_T) - 1)
            sums.append(logps_TV[at, ids_T[at + 1]].sum())
    count = len(batch.pairs)
    logps = PairLogps(
        torch.stack(sums[:count]),
        torch.stack(sums[count:]),
        torch.tensor([len(p.chosen) for p in batch.pairs]),
        torch.tensor([len(p.rejected) for p in batch.pairs]),
        batch.reference_chosen_B.double(),
        batch.reference_rejected_B.double(),
    )
    loss_B = loss(logps).loss_B
    loss_B.mean().backward()
    return loss_B.detach(), gradient_of(model)


def gradient_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """The gradient of every weight, taken out of the model."""
    taken = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return taken


def difference(gradient: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The worst weight's relative error; one whose slope is next to nothing is measured against the largest."""
    assert set(gradient) == set(exact)
    largest = max(float(g.norm()) for g in exact.values())
    return max(
        float((gradient[name].double() - g.double()).norm()) / max(float(g.norm()), 1e-3 * largest)
        for name, g in exact.items()
    )


def batch_of(pairs: Sequence[TokenisedPair], seed: int) -> Batch:
    """Reference log-probs near what such models give."""
    draw = torch.Generator().manual_seed(seed)
    chosen_B, rejected_B = (
        torch.tensor([-5.0 * len(getattr(p, side)) for p in pairs]) for side in ("chosen", "rejected")
    )
    return Batch(pairs, chosen_B + torch.randn(len(pairs), generator=draw), rejected_B)


def packed(model: PreTrainedModel, budget: int = 10_000) -> Compute:
    choice = choose_layout(model, replace(COMPUTE, token_budget=budget), max_length=160)
    assert choice.compute.layout is Layout.shared, choice.line
    return choice.compute


CASES = [(name, 1, 120) for name in TAKE_PACKED_ROWS if name != "Mixtral"]  # its experts know no float64
CASES += [(name, seed, budget) for name in ("Llama", "Mistral", "Gemma2") for seed, budget in ((2, 10_000), (3, 1))]


@pytest.mark.parametrize(("name", "seed", "budget"), CASES)
def test_loss_and_every_gradient_equal_the_naive_ones(name: str, seed: int, budget: int):
    batch = batch_of(random_pairs(seed), seed)
    loss = LSIF() if seed == 2 else DPO(beta=0.3)
    loss_B, exact = naive_gradient(build(name, attention="eager").double(), loss, batch)
    model = build(name)
    compute = packed(model, budget)
    assert len(split_batch(batch.pairs, compute)) == {10_000: 1, 1: 9}.get(budget, 6)
    gradient = accumulate_gradient(model, loss, batch, compute)
    torch.testing.assert_close(gradient.loss_B.double(), loss_B, rtol=1e-5, atol=1e-5)
    # float32 against float64: 1.02e-5 at most over the cases and two makes of CPU.
    assert difference(gradient_of(model), exact) < 2e-5


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GPTNeoX"])
def test_in_bfloat16_the_gradient_is_within_rounding(name: str):
    batch = batch_of(random_pairs(4), 4)
    _, exact = naive_gradient(build(name, attention="eager").double(), DPO(), batch)
    model = build(name)
    accumulate_gradient(model, DPO(), batch, replace(packed(model), bf16=True))
    mine = gradient_of(model)
    flat, flat_exact = (torch.cat([g[name].double().flatten() for name in exact]) for g in (mine, exact))
    assert 1e-4 < float((flat - flat_exact).norm() / flat_exact.norm()) < 2e-2


@pytest.mark.parametrize("loss", [LSIF(), LOSSES["kliep"](), LOSSES["aot"]()], ids=lambda loss: loss.name)
def test_micro_packs_and_their_order_do_not_matter(loss: PreferenceLoss):
    model = build("Mistral").double()
    batch = batch_of(random_pairs(5, count=8), 5)
    compute = packed(model)
    whole = accumulate_gradient(model, loss, batch, compute)
    expected = gradient_of(model)
    for budget, order in ((1, range(8)), (90, range(8)), (200, (3, 1, 7, 0, 5, 2, 6, 4))):
        part = accumulate_gradient(model, loss, batch.part(list(order)), replace(compute, token_budget=budget))
        torch.testing.assert_close(part.loss_B, whole.loss_B[list(order)], rtol=1e-6, atol=1e-6, check_dtype=False)
        assert difference(gradient_of(model), expected) < 1e-6


def test_checkpointing_changes_no_gradient():
    batch = batch_of(random_pairs(6), 6)
    model = build("Llama").train()
    compute = packed(model, budget=150)
    accumulate_gradient(model, LSIF(), batch, compute)
    expected = gradient_of(model)
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    accumulate_gradient(model, LSIF(), batch, compute)
    assert len(calls) == 2 * len(split_batch(batch.pairs, compute))
    assert difference(gradient_of(model), expected) < 1e-7


def test_a_demonstration_has_one_response():
    pairs = [replace(pair, rejected=np.empty(0, dtype=np.int32)) for pair in random_pairs(7)]
    model = build("Llama")
    padded = score_pairs(model, pairs, COMPUTE)
    scored = score_pairs(model, pairs, packed(model, budget=100))
    torch.testing.assert_close(scored.policy_chosen_B, padded.policy_chosen_B, rtol=1e-5, atol=1e-4)
    assert scored.policy_rejected_B.tolist() == [0.0] * 9
    assert scored.rejected_tokens_B.tolist() == [0] * 9


@pytest.mark.parametrize("layout", Layout)
def test_scores_are_the_same_in_every_layout(layout: Layout):
    pairs = random_pairs(8)
    plain = score_pairs(build("Llama"), pairs, replace(COMPUTE, token_budget=1))
    model = build("Llama")
    compute = packed(model, budget=150) if layout is not Layout.padded else replace(COMPUTE, token_budget=150)
    scored = score_pairs(model, pairs, replace(compute, layout=layout))
    for side in ("chosen", "rejected"):
        mine_B, plain_B = (getattr(x, f"policy_{side}_B") for x in (scored, plain))
        torch.testing.assert_close(mine_B, plain_B, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", TAKE_PACKED_ROWS)
def test_added_tokens_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    # Rows of a multiple of 32 tokens, as oneDNN gets them, and rows as they are.
    model, batch = build(name), batch_of(random_pairs(7), 7)
    compute = packed(model, 150)
    rows: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].numel()))
    found = []
    for step in (1, 32):
        monkeypatch.setattr("dil_cli.models.logps.shape_step", lambda device, step=step: step)
        rows.clear()
        accumulated = accumulate_gradient(model, DPO(beta=0.3), batch, compute)
        assert any(tokens % 32 for tokens in rows) == (step == 1)
        found.append((accumulated.loss_B, gradient_of(model)))
    (loss_B, gradient), (rounded_B, rounded) = found
    torch.testing.assert_close(rounded_B, loss_B, rtol=1e-5, atol=1e-6)
    assert difference(rounded, gradient) < 1e-5
