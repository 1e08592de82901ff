"""Packed attention by torch's FlexAttention: one fused kernel for the row, blocks that no query sees left out.

Shape suffixes: H query heads, K key heads, T tokens of the row, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex

from dil_cli.models.packed_attention import stems_of
from dil_cli.types import Stem

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def flex_attention(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it: (1, T, H, D), and no weights.

    Raises:
        PackRefused: as `stems_of`.
    """
    stems = stems_of(query_1HTD, attention_mask, extras)
    device = query_1HTD.device
    attend: Any = _compiled() if device.type == "cuda" else torch_flex
    # Under autocast an architecture may norm its queries and keys in float32; the kernel wants one type.
    query_1HTD, key_1KTD = query_1HTD.to(value_1KTD.dtype), key_1KTD.to(value_1KTD.dtype)
    out_1HTD = attend(
        query_1HTD, key_1KTD, value_1KTD, score_mod=_cap(softcap), scale=scaling,
        block_mask=_blocks(stems, sliding_window, device), enable_gqa=query_1HTD.shape[1] != key_1KTD.shape[1],
    )  # fmt: skip
    return out_1HTD.transpose(1, 2), None


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    # Rows differ in length: one kernel for all of them.
    compiled: Callable[..., Tensor] = torch.compile(torch_flex, dynamic=True)
    return compiled


@lru_cache(maxsize=8)
def _blocks(stems: tuple[Stem, ...], window: int | None, device: torch.device) -> BlockMask:
    """The row's block mask, the same for every layer with this window."""
    tokens = sum(stem.prompt + sum(stem.branches) for stem in stems)
    return create_block_mask(visible(stems, window, device), None, None, tokens, tokens, device=str(device))


def visible(stems: tuple[Stem, ...], window: int | None, device: torch.device) -> Mask:
    """The rule of a packed row: same pair, prompt or own response, not ahead, inside the window."""
    stem_T, branch_T, position_T = (column.to(device) for column in _places(stems))

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        behind = position_T[query] - position_T[key]
        seen = (stem_T[query] == stem_T[key]) & ((branch_T[key] == 0) | (branch_T[key] == branch_T[query]))
        seen = seen & (behind >= 0)
        return seen if window is None else seen & (behind < window)

    return rule


def _places(stems: tuple[Stem, ...]) -> list[Tensor]:
    """Of each place of the row: its pair, its response (0 is the prompt), its position in the sequence."""
    rows = []
    for number, stem in enumerate(stems):
        rows += [(number, 0, position) for position in range(stem.prompt)]
        for branch, length in enumerate(stem.branches, start=1):
            rows += [(number, branch, stem.prompt + position) for position in range(length)]
    return list(torch.tensor(rows).T)


@lru_cache(maxsize=8)
def _cap(softcap: float | None) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None

    def cap(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap
