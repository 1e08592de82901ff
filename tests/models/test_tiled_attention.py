"""Tiled and flex attention over packed rows against one dense softmax under the rule written out token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dil_cli.models import tiled_attention
from dil_cli.models.flex_attention import flex_attention
from dil_cli.models.packed_attention import PackRefused, check_called, set_stems
from dil_cli.types import Stem

STEMS = (Stem(0, 5, (4, 6)), Stem(15, 1, (0, 3)), Stem(19, 9, (2,)), Stem(30, 3, (7, 1, 2)))
TOKENS, HEADS, KEY_HEADS, DIM = 43, 4, 2, 8
NO_MODULE = torch.nn.Module()


@pytest.fixture(params=[256, 3])
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled_attention, "TILE_QUERIES", request.param)
    tiled_attention.tiles.cache_clear()
    yield
    tiled_attention.tiles.cache_clear()


def seen_QK(window: int | None) -> Tensor:
    """Which keys each token may see: walk over the stems and say it in words."""
    seen = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for stem in STEMS:
        prompt = list(range(stem.start, stem.start + stem.prompt))
        sequences = []
        end = stem.start + stem.prompt
        for length in stem.branches:
            sequences.append(prompt + list(range(end, end + length)))
            end += length
        for sequence in sequences:
            for position, token in enumerate(sequence):
                first = 0 if window is None else max(0, position - window + 1)
                for key in sequence[first : position + 1]:
                    seen[token, key] = True
    return seen


def dense(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    k, v = (x.repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scale
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen_QK(window), -torch.inf).softmax(dim=-1)
    return (weights @ v).transpose(1, 2)


def heads(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, TOKENS, DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(shape, generator=draw, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_value_and_gradient_equal_dense_attention(small_tiles: None, window: int | None, softcap: float | None):
    set_stems(STEMS)
    mine, theirs = heads(0), heads(0)
    out, weights = tiled_attention.tiled_attention(
        NO_MODULE, *mine, None, scaling=0.3, sliding_window=window, softcap=softcap
    )
    expected = dense(*theirs, 0.3, window, softcap)
    assert weights is None
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    slope = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out.backward(slope)
    expected.backward(slope)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


def test_bfloat16_heads_are_multiplied_in_float32():
    set_stems(STEMS)
    rough = heads(2, torch.bfloat16)
    exact = dense(*(x.detach().double() for x in rough), 0.3, None, None)
    out, _ = tiled_attention.tiled_attention(NO_MODULE, *rough, None, scaling=0.3)
    assert out.dtype == torch.bfloat16
    # Half a unit in the last place of a bfloat16, from rounding the result alone.
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=2**-9)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, 0.7)])
def test_flex_attention_follows_the_same_rule(window: int | None, softcap: float | None):
    set_stems(STEMS)
    q, k, v = (x.detach().float() for x in heads(3))
    out, _ = flex_attention(NO_MODULE, q, k, v, None, scaling=0.3, sliding_window=window, softcap=softcap)
    torch.testing.assert_close(out, dense(q, k, v, 0.3, window, softcap), rtol=1e-5, atol=1e-5)


def test_what_a_packed_row_cannot_give_is_refused():
    set_stems(STEMS)
    with pytest.raises(PackRefused, match="does not use the attention"):
        check_called()
    q, k, v = heads(4)
    with pytest.raises(PackRefused, match="takes s_aux"):
        tiled_attention.tiled_attention(NO_MODULE, q, k, v, None, s_aux=torch.zeros(HEADS))
    with pytest.raises(PackRefused, match="takes attention_mask"):
        tiled_attention.tiled_attention(NO_MODULE, q, k, v, torch.zeros(1))
    with pytest.raises(PackRefused, match=r"a row of 43 tokens reached attention as \(1, 4, 42, 8\)"):
        tiled_attention.tiled_attention(NO_MODULE, q[:, :, 1:], k, v, None)
    tiled_attention.tiled_attention(NO_MODULE, q, k, v, None)
    check_called()


@pytest.mark.parametrize("lengths", [(40, 60, 60), (300, 700, 700), (2000, 30, 30), (30, 1500, 1500)])
@pytest.mark.parametrize("window", [None, 256])
def test_little_is_multiplied_beyond_what_is_seen(lengths: tuple[int, int, int], window: int | None):
    prompt, *branches = lengths
    stem = Stem(7, prompt, tuple(branches))
    multiplied = sum(
        (tile.stop - tile.start) * sum(stop - start for start, stop in tile.keys)
        for tile in tiled_attention.tiles((stem,), window)
    )

    def seen(position: int) -> int:
        return position + 1 if window is None else min(position + 1, window)

    must = sum(seen(position) for position in range(prompt))
    must += sum(seen(prompt + position) for branch in branches for position in range(branch))
    tile = tiled_attention.TILE_QUERIES
    assert must <= multiplied <= must + tile * (sum(lengths) + 2 * tile)
