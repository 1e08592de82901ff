"""Each loss does its work on a small model: a few steps raise the margin, and nothing becomes non-finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dil_cli.dynamics.measure import Compute, score_pairs
from dil_cli.losses import LOSSES, Combine
from dil_cli.train.step import Batch, accumulate_gradient, apply_gradient
from dil_cli.types import TokenisedPair

COMPUTE = Compute(torch.device("cpu"), bf16=False, token_budget=150, pad_id=0)
STEPS, PAIRS = 6, 6


def ids(numbers: np.random.Generator) -> np.ndarray:
    return numbers.integers(0, 250, numbers.integers(4, 12), dtype=np.int32)


@pytest.mark.parametrize("name", LOSSES)
def test_a_few_steps_raise_the_margin(name: str, model_folder: Path):
    numbers = np.random.default_rng(3)
    pairs = [TokenisedPair(i, ids(numbers), ids(numbers), ids(numbers)) for i in range(PAIRS)]
    loss = Combine(terms={"dpo": 0.9, "sft": 0.1}) if name == "combine" else LOSSES[name]()
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    start = score_pairs(model, pairs, COMPUTE)
    reference = (start.policy_chosen_B, start.policy_rejected_B) if loss.needs_reference else (None, None)
    batch = Batch(pairs, *reference)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    norms = []
    for _ in range(STEPS):
        gradient = accumulate_gradient(model, loss, batch, COMPUTE)
        assert gradient.loss_B.isfinite().all()
        norms.append(apply_gradient(model, [optimiser], batch, 1.0, rescore=lambda batch: None))
    assert norms[0] > 0
    end = score_pairs(model, pairs, COMPUTE)
    chosen_B = (end.policy_chosen_B - start.policy_chosen_B) / start.chosen_tokens_B
    rejected_B = (end.policy_rejected_B - start.policy_rejected_B) / start.rejected_tokens_B
    assert float((chosen_B - rejected_B).mean()) > 0.05
    if name != "apo_down":  # its chosen responses follow the rejected ones down, by design
        assert float(chosen_B.mean()) > -0.05
    assert float(rejected_B.mean()) < 0.05 or not loss.needs_rejected
