"""How likely a model finds held-out responses. B pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dil_cli.config.compose import compose
from dil_cli.data.load import load_pairs
from dil_cli.data.tokenise import tokenise_pairs
from dil_cli.dynamics.measure import Compute, score_pairs


@dataclass(frozen=True)
class HeldoutLoss:
    """Mean negative log-likelihood of the responses of one side, nats, EOS included."""

    side: str
    responses: int
    per_token: float
    per_byte: float


def heldout_losses(model: torch.nn.Module, tokenizer: Any, words: Sequence[str]) -> list[HeldoutLoss]:
    """Of the chosen and, where there are any, the rejected held-out responses of a data set.

    Args:
        model: in float32, on the CPU.
        tokenizer: its own.
        words: that choose the data set, for example `data=gsm8k`.
    """
    config = compose("train", ["loss=sft", *words]).data
    pairs = load_pairs(config, seed=0, needs_rejected=False).heldout
    split = tokenise_pairs(pairs, tokenizer, config)
    compute = Compute(torch.device("cpu"), bf16=False, token_budget=8192, pad_id=tokenizer.eos_token_id)
    logps = score_pairs(model, split.pairs, compute)
    by_row = {pair.row: pair for pair in pairs}
    found = []
    for side in ("chosen", "rejected"):
        if tokens := int(getattr(logps, f"{side}_tokens_B").sum()):
            loss = -float(getattr(logps, f"policy_{side}_B").double().sum())
            size = sum(len(getattr(by_row[pair.row], side).encode()) for pair in split.pairs)
            found.append(HeldoutLoss(side, len(split.pairs), loss / tokens, loss / size))
    return found
