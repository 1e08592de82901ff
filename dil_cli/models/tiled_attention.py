"""Packed attention as matrix products, tile by tile: no mask of the row, no key that no query of the tile sees.

Shape suffixes: H query heads, K key heads, G = H / K query heads per key head, T tokens of the row, Q queries and
J keys of a tile, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dil_cli.models.matmul import small_products
from dil_cli.models.packed_attention import stems_of
from dil_cli.types import Stem

TILE_QUERIES = 256
"""Rows of a tile. Keys beyond its last row are never touched, so long responses cost half of a dense square."""


def tiled_attention(
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
    scale = query_1HTD.shape[-1] ** -0.5 if scaling is None else scaling
    out_HTD = _Tiled.apply(  # type: ignore[no-untyped-call]
        query_1HTD[0], key_1KTD[0], value_1KTD[0], stems, scale, sliding_window, softcap
    )
    return out_HTD.transpose(0, 1)[None], None


class Tile(NamedTuple):
    """Queries of places `start` to `stop`, and the stretches of places (in logical order) that are their keys.

    The last key is the last query itself: the mask is a triangle aligned at the lower right.
    """

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]


@lru_cache(maxsize=64)
def tiles(stems: tuple[Stem, ...], window: int | None) -> tuple[Tile, ...]:
    """All tiles of a row; with a sliding `window` the keys that no query of a tile sees are left out."""
    return tuple(tile for stem in stems for tile in _tiles_of(stem, window))


def _tiles_of(stem: Stem, window: int | None) -> Iterator[Tile]:
    after_prompt = stem.start + stem.prompt
    # The prompt and its first response are one causal sequence.
    first, *others = stem.branches or (0,)
    for start, stop in _cut(stem.start, after_prompt + first):
        unseen = 0 if window is None else max(0, start - stem.start - window + 1)
        yield Tile(start, stop, ((stem.start + unseen, stop),))
    branch = after_prompt + first
    for length in others:
        for start, stop in _cut(branch, branch + length):
            unseen = 0 if window is None else max(0, stem.prompt + start - branch - window + 1)
            in_prompt = (min(stem.start + unseen, after_prompt), after_prompt)
            in_branch = (branch + max(0, unseen - stem.prompt), stop)
            yield Tile(start, stop, (in_prompt, in_branch))
        branch += length


def _cut(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for at in range(start, stop, TILE_QUERIES):
        yield at, min(at + TILE_QUERIES, stop)


@lru_cache(maxsize=128)
def _bias(queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf (Q, J) where a query must not see a key, else 0: adding it is ten times as fast as `masked_fill_`."""
    ahead_QJ = torch.arange(keys, device=device)[None] - torch.arange(keys - queries, keys, device=device)[:, None]
    hidden_QJ = ahead_QJ > 0
    if window is not None:
        hidden_QJ |= ahead_QJ <= -window
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden_QJ, -torch.inf)


def forget_masks() -> None:
    """Drop the masks that are kept, which tensors without content (`dil plan`) must not mix with."""
    _bias.cache_clear()


class _Tiled(torch.autograd.Function):
    """softmax(scale q k^T) v tile by tile; the backward pass computes each tile's weights again."""

    @staticmethod
    def forward(
        ctx: Any,
        q_HTD: Tensor,
        k_KTD: Tensor,
        v_KTD: Tensor,
        stems: tuple[Stem, ...],
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        ctx.tiles, ctx.scale, ctx.window, ctx.softcap = tiles(stems, window), scale, window, softcap
        out_THD = q_HTD.new_empty(q_HTD.shape[1], q_HTD.shape[0], v_KTD.shape[-1])
        out_HTD = out_THD.transpose(0, 1)
        with small_products(q_HTD.device), torch.autocast(q_HTD.device.type, enabled=False):
            scaled_HTD = q_HTD.to(_exact(q_HTD.dtype)) * scale
            for tile in ctx.tiles:
                rows = slice(tile.start, tile.stop)
                q_KGD, k_KJD, v_KJD = _fold(scaled_HTD[:, rows], len(k_KTD)), _keys(k_KTD, tile), _keys(v_KTD, tile)
                weights_KGJ = _scores(q_KGD, k_KJD, tile, ctx)[0].softmax(dim=-1)
                out_HTD[:, rows] = (weights_KGJ @ v_KJD).view(len(q_HTD), -1, v_KTD.shape[-1])
        ctx.save_for_backward(q_HTD, k_KTD, v_KTD, out_HTD)
        return out_HTD

    @staticmethod
    def backward(ctx: Any, slope_HTD: Tensor) -> tuple[Tensor | None, ...]:
        q_HTD, k_KTD, v_KTD, out_HTD = ctx.saved_tensors
        heads, dim = len(q_HTD), q_HTD.shape[-1]
        exact = _exact(q_HTD.dtype)
        # dL/ds = w (dL/dw - sum over keys of w dL/dw), and that sum is the product of output and its slope.
        inner_HT = (slope_HTD.to(exact) * out_HTD.to(exact)).sum(dim=-1)
        dq_HTD, dk_KTD, dv_KTD = _like(q_HTD, exact), _like(k_KTD, exact).zero_(), _like(v_KTD, exact).zero_()
        with small_products(q_HTD.device), torch.autocast(q_HTD.device.type, enabled=False):
            scaled_HTD = q_HTD.to(exact) * ctx.scale
            for tile in ctx.tiles:
                rows = slice(tile.start, tile.stop)
                q_KGD, k_KJD, v_KJD = _fold(scaled_HTD[:, rows], len(k_KTD)), _keys(k_KTD, tile), _keys(v_KTD, tile)
                slope_KGD = _fold(slope_HTD[:, rows], len(k_KTD))
                scores_KGJ, bend_KGJ = _scores(q_KGD, k_KJD, tile, ctx)
                weights_KGJ = scores_KGJ.softmax(dim=-1)
                _add(dv_KTD, tile, weights_KGJ.transpose(1, 2) @ slope_KGD)
                ds_KGJ = (slope_KGD @ v_KJD.transpose(1, 2)).sub_(_fold(inner_HT[:, rows, None], len(k_KTD)))
                ds_KGJ.mul_(weights_KGJ)
                if bend_KGJ is not None:
                    ds_KGJ.mul_(bend_KGJ)
                dq_HTD[:, rows] = (ds_KGJ @ k_KJD).view(heads, -1, dim)
                _add(dk_KTD, tile, ds_KGJ.transpose(1, 2) @ q_KGD)
        slopes = (dq_HTD.mul_(ctx.scale).to(q_HTD.dtype), dk_KTD.to(k_KTD.dtype), dv_KTD.to(v_KTD.dtype))
        return *slopes, None, None, None, None


def _scores(q_KGD: Tensor, k_KJD: Tensor, tile: Tile, ctx: Any) -> tuple[Tensor, Tensor | None]:
    """Scores (K, G * Q, J) with -inf where a key is hidden, and d(capped score) / d(score) if there is a cap."""
    scores_KGJ = q_KGD @ k_KJD.transpose(1, 2)
    bend_KGJ = None
    if ctx.softcap is not None:
        tanh_KGJ = scores_KGJ.div_(ctx.softcap).tanh_()
        bend_KGJ = 1 - tanh_KGJ.square()
        scores_KGJ = tanh_KGJ.mul_(ctx.softcap)
    queries, keys = tile.stop - tile.start, k_KJD.shape[1]
    # Without a window every query sees all keys before the tile.
    reach = queries if ctx.window is None else keys
    bias_QJ = _bias(queries, reach, ctx.window, scores_KGJ.dtype, q_KGD.device)
    scores_KGJ.view(len(k_KJD), -1, queries, keys)[..., keys - reach :] += bias_QJ
    return scores_KGJ, bend_KGJ


def _exact(dtype: torch.dtype) -> torch.dtype:
    """At least float32: scores in bfloat16 would have two digits, and attention is a small part of the work."""
    return torch.promote_types(dtype, torch.float32)


def _fold(x_HQD: Tensor, key_heads: int) -> Tensor:
    """The query heads of a key head as further rows, (K, G * Q, D): one product serves them all."""
    exact_HQD = x_HQD.to(_exact(x_HQD.dtype))
    return exact_HQD if len(x_HQD) == key_heads else exact_HQD.reshape(key_heads, -1, x_HQD.shape[-1])


def _keys(x_KTD: Tensor, tile: Tile) -> Tensor:
    """The rows of a tile's keys, (K, J, D)."""
    parts = [x_KTD[:, start:stop] for start, stop in tile.keys if stop > start]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).to(_exact(x_KTD.dtype))


def _add(total_KTD: Tensor, tile: Tile, part_KJD: Tensor) -> None:
    at = 0
    for start, stop in tile.keys:
        total_KTD[:, start:stop] += part_KJD[:, at : at + stop - start]
        at += stop - start


def _like(x_HTD: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty (H, T, D), laid out token by token as the projections before attention want their gradient."""
    heads, tokens, dim = x_HTD.shape
    return x_HTD.new_empty(tokens, heads, dim, dtype=dtype).transpose(0, 1)
