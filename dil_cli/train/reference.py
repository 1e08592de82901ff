"""The reference column: what the cache has of it, and one pass over the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dil_cli.config.schema import TrainConfig
from dil_cli.dynamics.measure import Compute, score_pairs
from dil_cli.models.adapters import base_parameters
from dil_cli.models.reference_cache import ReferenceCache, Scored, identify, response_keys
from dil_cli.types import PairLogps, TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PART_TOKENS = 1_000_000
"""Tokens scored between two writes: minutes of a slow machine's work, which a kill may cost."""


@dataclass(frozen=True)
class LookUp:
    """What the cache has of some pairs: the keys of chosen and rejected, and the indices of pairs that lack a value."""

    pairs: Sequence[TokenisedPair]
    keys: Sequence[Sequence[bytes | None]]
    missing: Sequence[int]

    @property
    def hits(self) -> int:
        """Pairs of which every response is known."""
        return len(self.pairs) - len(self.missing)

    def describe(self) -> str:
        """One line for the user."""
        total = len(self.pairs)
        if not self.hits:
            return f"all {total:,} pairs computed"
        rest = ", the others computed" if self.missing else ""
        return f"{self.hits:,} of {total:,} pairs from the cache{rest}"


def open_cache(
    config: TrainConfig, model: PreTrainedModel, weights_sha256: str, compute: Compute, keep: bool = True
) -> ReferenceCache:
    """The cache of the reference that `model` is before the first step, under `<output>/cache`; as `ReferenceCache`."""
    reference = identify(model, weights_sha256, precision(compute, model))
    root = Path(config.output) / "cache" / "reference"
    return ReferenceCache(root, reference, config.model, base_parameters(model), keep)


def precision(compute: Compute, model: PreTrainedModel) -> str:
    """What changes a log-prob by more than the order of a float32 sum: values are kept apart by it.

    Under bf16 that is the rows and the attention too: some keep their scores in float32, some do not.
    """
    return f"bf16 {compute.layout.value} {model.config._attn_implementation}" if compute.bf16 else "fp32"


def reference_column(
    model: PreTrainedModel,
    pairs: Sequence[TokenisedPair],
    compute: Compute,
    cache: ReferenceCache,
    advance: Callable[[int], None] = lambda pairs_done: None,
) -> PairLogps:
    """The log-probs of `pairs` as `score_pairs` has them, computed where `cache` lacks them, and kept in it.

    `advance` hears of computed pairs only; `look_up` and `complete` do the same in two steps.
    """
    return complete(look_up(pairs, cache), model, compute, cache, advance)


def look_up(pairs: Sequence[TokenisedPair], cache: ReferenceCache) -> LookUp:
    """Which of `pairs` the cache has."""
    keys = [response_keys(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    missing = [i for i, both in enumerate(keys) if any(key is not None and key not in cache.values for key in both)]
    return LookUp(pairs, keys, missing)


def complete(
    found: LookUp,
    model: PreTrainedModel,
    compute: Compute,
    cache: ReferenceCache,
    advance: Callable[[int], None] = lambda pairs_done: None,
) -> PairLogps:
    """The whole column, float32 on the CPU, in the order of the pairs; the missing pairs are scored and stored.

    A response that several pairs have gets one value, so that the column is the same whether cached or not.
    """
    not_finite: dict[bytes, float] = {}  # never cached, but the column shows them
    for part in _parts(found):
        logps = score_pairs(model, [found.pairs[i] for i in part], compute, advance)
        scored: dict[bytes, Scored] = {}
        for i, *values in zip(part, logps.policy_chosen_B.tolist(), logps.policy_rejected_B.tolist(), strict=True):
            pair = found.pairs[i]
            for key, logp, ids in zip(found.keys[i], values, (pair.chosen, pair.rejected), strict=True):
                if key is not None and key not in cache.values and key not in scored:
                    scored[key] = Scored(key, logp, pair.prompt, ids)
        cache.store(list(scored.values()))
        not_finite |= {key: one.logp for key, one in scored.items() if key not in cache.values}
    return _column(found, cache.values, not_finite)


def _column(found: LookUp, values: dict[bytes, float], not_finite: dict[bytes, float]) -> PairLogps:
    def logps_B(side: int) -> torch.Tensor:
        keys = (both[side] for both in found.keys)
        return torch.tensor(
            [0.0 if key is None else values[key] if key in values else not_finite[key] for key in keys],
            dtype=torch.float32,
        )

    return PairLogps(
        policy_chosen_B=logps_B(0),
        policy_rejected_B=logps_B(1),
        chosen_tokens_B=torch.tensor([len(pair.chosen) for pair in found.pairs], dtype=torch.long),
        rejected_tokens_B=torch.tensor([len(pair.rejected) for pair in found.pairs], dtype=torch.long),
    )


def _parts(found: LookUp) -> list[list[int]]:
    """The missing pairs in parts of `PART_TOKENS`: the longest first, so that too little memory shows at once."""

    def tokens(i: int) -> int:
        pair = found.pairs[i]
        return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)

    parts: list[list[int]] = []
    room = 0
    for i in sorted(found.missing, key=lambda i: (-tokens(i), i)):
        if room <= 0:
            parts.append([])
            room = PART_TOKENS
        parts[-1].append(i)
        room -= tokens(i)
    return [sorted(part) for part in parts]
