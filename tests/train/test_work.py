"""How much work a run does, counted and not timed: tokens through the body, rows through the head, passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dil_cli.data.packing import packed_tokens
from dil_cli.dynamics import layout, measure
from dil_cli.dynamics.measure import Compute
from dil_cli.losses import LOSSES
from dil_cli.models import logps
from dil_cli.train.step import Batch, accumulate_gradient
from dil_cli.types import TokenisedPair


@dataclass(frozen=True)
class Forward:
    """One forward pass of a packed row."""

    pairs: int
    tokens: int
    scored: int
    with_gradient: bool


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[Forward]:
    """Every packed row that goes through a model."""
    seen: list[Forward] = []
    packed_logps = logps.packed_logps

    def watch(model, pack):  # type: ignore[no-untyped-def]
        rows = []
        head = model.get_output_embeddings()
        seen.append(Forward(pack.pairs, pack.input_ids_T.numel(), pack.targets_N.numel(), torch.is_grad_enabled()))
        hook = head.register_forward_hook(lambda *_: rows.append(1))
        summed = packed_logps(model, pack)
        hook.remove()
        assert not rows, "the model's own head made logits of every token"
        return summed

    monkeypatch.setattr(measure, "packed_logps", watch)
    # Counted is what must be read, also where an earlier test chose products that take rows in multiples.
    monkeypatch.setattr(logps, "shape_step", lambda device: 1)
    return seen


def ids(numbers: np.random.Generator, length: int) -> np.ndarray:
    return numbers.integers(0, 250, length, dtype=np.int32)


@pytest.mark.parametrize("budget", [10_000, 150])
@pytest.mark.parametrize("name", ["dpo", "kliep"])
def test_a_step_reads_a_prompt_once_and_scores_response_tokens_only(
    name: str, budget: int, model_folder: Path, forwards: list[Forward], monkeypatch: pytest.MonkeyPatch
):
    numbers = np.random.default_rng(0)
    pairs = [TokenisedPair(i, ids(numbers, 40), ids(numbers, 5 + i), ids(numbers, 9)) for i in range(8)]
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    compute = layout.choose_layout(model, Compute(torch.device("cpu"), False, budget, 0), 128).compute
    read: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: read.append(args[0].numel()))
    head_rows: list[int] = []
    token_logps = logps.token_logps
    monkeypatch.setattr(
        logps,
        "token_logps",
        lambda head, hidden, targets: head_rows.append(len(hidden)) or token_logps(head, hidden, targets),
    )
    forwards.clear()
    reference = torch.full((8,), -50.0)
    gradient = accumulate_gradient(model, LOSSES[name](), Batch(pairs, reference, reference), compute)
    # A loss with a statistic of the batch needs all log-probs before the first gradient, unless one row holds them.
    passes = 2 if name == "kliep" and budget == 150 else 1
    unique = sum(40 + (5 + i - 1) + (9 - 1) for i in range(8))
    assert gradient.tokens == unique == sum(map(packed_tokens, pairs))
    assert sum(read) == sum(forward.tokens for forward in forwards) == passes * unique
    assert sum(head_rows) == passes * sum(5 + i + 9 for i in range(8))
    assert all(forward.tokens <= max(budget, 63) for forward in forwards)


def test_a_run_reads_each_pair_as_often_as_it_must(
    dil_here: Callable[..., tuple[int, str, str]], small_run: list[str], forwards: list[Forward]
):
    train, held_out, measurements, preflight = 36, 4, 3, 8
    trial = 3  # with gradient, and twice without, to see whether neighbours matter
    assert dil_here("train", *small_run, "loss=dpo")[0] == 0
    with_gradient = sum(forward.pairs for forward in forwards if forward.with_gradient)
    without = sum(forward.pairs for forward in forwards if not forward.with_gradient)
    assert with_gradient == train + trial
    assert without == 2 * trial + (train + held_out) + preflight + measurements * held_out
    # Another loss, rate and label noise: no reference pass at all.
    forwards.clear()
    assert dil_here("train", *small_run, "loss=ipo", "optim.lr=3e-4", "data.label_noise=0.2")[0] == 0
    without = sum(forward.pairs for forward in forwards if not forward.with_gradient)
    assert without == 2 * trial + preflight + measurements * held_out
