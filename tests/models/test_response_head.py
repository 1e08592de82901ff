"""Log-probs by tiles against the whole vocabulary at once, and how many rows and logits the head makes."""

from __future__ import annotations

import pytest
import torch
from architectures import build
from torch import Tensor

from dil_cli.models import response_head
from dil_cli.models.response_head import Head, token_logps

ROWS, HIDDEN, VOCABULARY = 11, 6, 13


def parts(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((ROWS, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,))
    tensors = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]
    return *tensors, torch.randint(0, VOCABULARY, (ROWS,), generator=draw)


def whole(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, head: Head) -> Tensor:
    logits_NV = head.scale * torch.nn.functional.linear(hidden_ND, weight_VD, bias_V)
    logits_NV = logits_NV if head.softcap is None else head.softcap * torch.tanh(logits_NV / head.softcap)
    return logits_NV.log_softmax(dim=1)[torch.arange(ROWS), targets_N]


@pytest.fixture(params=[1, 4, 100], ids=lambda rows: f"{rows}-rows-a-tile")
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(response_head.TILE_BYTES, "cpu", 4 * VOCABULARY * request.param)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (2.0, 1.5)])
def test_value_and_gradients_equal_the_whole(tile: None, bias: bool, scale: float, softcap: float | None):
    hidden, weight, bias_V, targets = parts()
    head = Head(weight, bias_V if bias else None, scale, softcap)
    leaves = [hidden, weight, *([bias_V] if bias else [])]
    mine = token_logps(head, hidden, targets)
    theirs = whole(hidden, weight, head.bias_V, targets, head)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    slope_N = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(mine, leaves, slope_N), torch.autograd.grad(theirs, leaves, slope_N), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_no_logits_are_kept_between_the_passes():
    hidden, weight, _, targets = parts()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        token_logps(Head(weight, None, 1.0, None), hidden, targets)
    assert sorted(x.numel() for x in kept) == sorted([ROWS * HIDDEN, VOCABULARY * HIDDEN, ROWS])


def test_under_autocast_tiles_are_float32():
    hidden, weight, _, targets = (x.detach().float() if x.is_floating_point() else x for x in parts())
    head = Head(weight, None, 1.0, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = token_logps(head, hidden, targets)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, token_logps(head, hidden, targets), rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama", (False, 1.0, None)), ("Phi", (True, 1.0, None)), ("Gemma2", (False, 1.0, 3.0)),
        ("Granite", (False, 0.5, None)), ("Cohere", (False, 0.5, None)),
    ],
)  # fmt: skip
def test_what_an_architecture_does_after_its_body_is_known(name: str, expected: tuple[bool, float, float | None]):
    head = Head.of(build(name))
    assert head is not None
    assert (head.bias_V is not None, head.scale, head.softcap) == expected


def test_a_head_that_is_no_linear_layer_is_not_guessed(monkeypatch: pytest.MonkeyPatch):
    model = build("Llama")
    monkeypatch.setattr(model, "get_output_embeddings", lambda: torch.nn.Bilinear(2, 2, 2))
    assert Head.of(model) is None
