"""From token ids to batches: the order of an epoch, micro-batches by token budget, padded rows.

Shape suffixes: B pairs, R rows (chosen of all pairs, then rejected), T tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dil_cli.types import TokenisedPair

EPOCH_STREAM = 0x65706F6368
"""Keeps the random numbers of the epoch order apart from those of label noise under one seed."""


@dataclass(frozen=True)
class PaddedRows:
    """Pairs as rows padded on the right.

    Rows 0 to B-1 are prompt and chosen response of pair 0 to B-1, the further ones prompt and rejected
    response of the pairs that have one; `pair_R` names each row's pair.
    `response_mask_RT` is true where the token itself is scored: position t, predicted from t-1.
    """

    input_ids_RT: Tensor
    attention_mask_RT: Tensor
    response_mask_RT: Tensor
    pair_R: Tensor
    pairs: int


def epoch_order(pairs: int, seed: int, epoch: int) -> np.ndarray:
    """The shuffled indices of an epoch (int64), a function of nothing but seed and epoch."""
    return np.random.default_rng([EPOCH_STREAM, seed, epoch]).permutation(pairs)


def micro_batches(pairs: Sequence[TokenisedPair], token_budget: int) -> list[list[int]]:
    """Indices into `pairs`, each once, in groups of similar length whose padded rows fit the budget.

    The longest come first, so that a run that does not fit the memory fails at once. A pair that is
    over the budget by itself is a group of its own.
    """
    by_length = sorted(range(len(pairs)), key=lambda index: (-_longest(pairs[index]), index))
    groups: list[list[int]] = []
    longest = rows = 0
    for index in by_length:
        more = 2 if len(pairs[index].rejected) else 1
        if groups and (rows + more) * longest <= token_budget:
            groups[-1].append(index)
            rows += more
        else:
            groups.append([index])
            longest, rows = _longest(pairs[index]), more
    return groups


def pad_rows(pairs: Sequence[TokenisedPair], pad_id: int, device: torch.device | str) -> PaddedRows:
    """The pairs as padded rows on `device`; any `pad_id` will do, padding is masked out."""
    sides = [(index, pair.prompt, pair.chosen) for index, pair in enumerate(pairs)]
    sides += [(index, pair.prompt, pair.rejected) for index, pair in enumerate(pairs) if len(pair.rejected)]
    shape = len(sides), max(len(prompt) + len(response) for _, prompt, response in sides)
    ids_RT = np.full(shape, pad_id, dtype=np.int64)
    attention_RT = np.zeros(shape, dtype=bool)
    response_RT = np.zeros(shape, dtype=bool)
    for row, (_, prompt, response) in enumerate(sides):
        start, end = len(prompt), len(prompt) + len(response)
        ids_RT[row, :start], ids_RT[row, start:end] = prompt, response
        attention_RT[row, :end] = True
        response_RT[row, start:end] = True
    return PaddedRows(
        input_ids_RT=torch.from_numpy(ids_RT).to(device),
        attention_mask_RT=torch.from_numpy(attention_RT).to(device),
        response_mask_RT=torch.from_numpy(response_RT).to(device),
        pair_R=torch.tensor([index for index, _, _ in sides], device=device),
        pairs=len(pairs),
    )


def _longest(pair: TokenisedPair) -> int:
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
