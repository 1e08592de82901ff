"""Attention over a packed row: each response sees its prompt and itself, no pair sees another.

Registered with transformers under the names `TILES` and `FLEX`, so that any architecture which asks for its attention
by name uses it, unchanged. What the row holds travels in `set_stems`, since some architectures drop keyword arguments
on the way.

Shape suffixes: H query heads, K key heads, T tokens of the row, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dil_cli.types import Stem

TILES = "dil_tiles"
"""Tile by tile as matrix products (`tiled_attention.py`): any device, memory of one tile."""
FLEX = "dil_flex"
"""torch's FlexAttention with a block mask (`flex_attention.py`): CUDA."""


class PackRefused(Exception):
    """The architecture wants something that a packed row cannot give."""


_stems: tuple[Stem, ...] = ()
_called = False


def set_stems(stems: Sequence[Stem]) -> None:
    """What the next row holds. It stays set: gradient checkpointing calls attention again in the backward pass."""
    global _stems, _called
    _stems, _called = tuple(stems), False


def check_called() -> None:
    """To be called after the forward pass of a row.

    Raises:
        PackRefused: when no layer has asked for the attention that knows what the row holds.
    """
    if not _called:
        raise PackRefused("it does not use the attention it is given")


def stems_of(query_1HTD: Tensor, attention_mask: Tensor | None, extras: dict[str, Any]) -> tuple[Stem, ...]:
    """What the row that reached attention holds.

    Raises:
        PackRefused: for a mask, a position bias, attention sinks, or a row that is not the one announced.
    """
    global _called
    _called = True
    wanted = [name for name in ("s_aux", "position_bias", "head_mask", "alibi") if extras.get(name) is not None]
    wanted += [] if attention_mask is None else ["attention_mask"]
    if wanted:
        raise PackRefused(f"its attention takes {', '.join(wanted)}")
    tokens = sum(stem.prompt + sum(stem.branches) for stem in _stems)
    if query_1HTD.shape[0] != 1 or query_1HTD.shape[2] != tokens:
        raise PackRefused(f"a row of {tokens} tokens reached attention as {tuple(query_1HTD.shape)}")
    return _stems


def register() -> None:
    """Make both names known to transformers; no mask is registered with them, so it builds none."""
    from transformers import AttentionInterface

    from dil_cli.models.flex_attention import flex_attention
    from dil_cli.models.tiled_attention import tiled_attention

    AttentionInterface.register(TILES, tiled_attention)
    AttentionInterface.register(FLEX, flex_attention)
