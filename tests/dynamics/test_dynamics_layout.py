"""Each architecture gets the fastest layout that is right for it, and one that is not right is found out."""

from __future__ import annotations

import pytest
import torch
from architectures import DO_NOT, TAKE_PACKED_ROWS, WINDOW, build
from torch import nn

from dil_cli.distributed.shard import first_layers
from dil_cli.dynamics.layout import Choice, choose_layout
from dil_cli.dynamics.measure import Compute, Layout
from dil_cli.models import packed_attention, tiled_attention

COMPUTE = Compute(torch.device("cpu"), bf16=True, token_budget=64, pad_id=0)


def choose(name: str, max_length: int = 100) -> Choice:
    model = build(name)
    choice = choose_layout(model, COMPUTE, max_length)
    assert model.config._attn_implementation == choice.attention
    assert (choice.compute.bf16, choice.compute.token_budget) == (True, 64)
    return choice


@pytest.mark.parametrize("name", TAKE_PACKED_ROWS)
def test_packed_rows_with_one_prompt_where_they_are_right(name: str):
    choice = choose(name)
    assert choice.compute.layout is Layout.shared
    assert choice.line.startswith("rows: packed, each prompt once (dil_tiles, checked to ")


@pytest.mark.parametrize("name", DO_NOT)
def test_padded_rows_for_an_architecture_that_ignores_the_attention(name: str):
    choice = choose(name)
    assert choice.compute.layout is Layout.padded
    assert choice.attention in {"eager", "sdpa"}
    reason = "its attention takes s_aux" if name == "GptOss" else "it does not use the attention it is given"
    tried = "packed, each prompt once by dil_tiles or packed, each prompt twice by dil_tiles"
    assert choice.line == f"rows: padded, of similar length ({choice.attention}), slower; not {tried}: {reason}"


@pytest.mark.parametrize("name", [*TAKE_PACKED_ROWS, *DO_NOT])
def test_a_model_too_large_for_its_device_is_tried_by_its_first_layers(name: str):
    model, whole = build(name), choose(name)
    names = list(model.state_dict())
    with first_layers(model, 1):
        assert len(list(model.state_dict())) < len(names)
        part = choose_layout(model, COMPUTE, 100)
    assert list(model.state_dict()) == names
    assert (part.compute, part.attention) == (whole.compute, whole.attention)


class WithoutPositions(nn.Module):
    """A body that numbers its row from the left, whatever positions it is given."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, position_ids: object = None, **rest: object) -> object:
        return self.body(**rest)


def test_two_copies_of_the_prompt_where_positions_are_ignored():
    # Rotary positions count only relative to each other: right in a copy of its own, wrong after the other response.
    model = build("Llama")
    model.model = WithoutPositions(model.model)
    model.get_input_embeddings = lambda: model.model.body.embed_tokens
    choice = choose_layout(model, COMPUTE, 100)
    assert choice.compute.layout is Layout.separate
    assert choice.line.startswith("rows: packed, each prompt twice (dil_tiles, checked to ")
    assert "; not packed, each prompt once by dil_tiles: it differs by " in choice.line


@pytest.mark.parametrize("broken", ["scale", "window", "gradient"])
def test_attention_that_is_slightly_wrong_is_found_out(broken: str, monkeypatch: pytest.MonkeyPatch):
    right = tiled_attention.tiled_attention

    def wrong(module, query, key, value, mask, scaling, sliding_window=None, **rest):  # type: ignore[no-untyped-def]
        scaling = scaling * 1.01 if broken == "scale" else scaling
        sliding_window = sliding_window + 1 if broken == "window" else sliding_window
        key = key.detach() if broken == "gradient" else key
        return right(module, query, key, value, mask, scaling=scaling, sliding_window=sliding_window, **rest)

    monkeypatch.setattr(tiled_attention, "tiled_attention", wrong)
    try:
        choice = choose("Mistral")
    finally:
        monkeypatch.undo()
        packed_attention.register()
    assert choice.compute.layout is Layout.padded
    assert "it differs by" in choice.line


def test_a_window_that_no_row_reaches_needs_no_long_prompt(monkeypatch: pytest.MonkeyPatch):
    tokens = []
    set_stems = packed_attention.set_stems
    monkeypatch.setattr(
        "dil_cli.models.logps.set_stems", lambda stems: tokens.append(stems[0].prompt) or set_stems(stems)
    )
    choose("Mistral", max_length=WINDOW)
    choose("Mistral", max_length=4 * WINDOW)
    assert sorted(set(tokens)) == [WINDOW - 1, WINDOW + 8]


@pytest.mark.parametrize("max_length", [2, 5, 30])
def test_a_model_with_few_positions_is_tried_within_them(max_length: int):
    model = build("GPT2")
    model.transformer.wpe = nn.Embedding(max_length, 48)
    assert choose_layout(model, COMPUTE, max_length).compute.layout is Layout.shared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_that_reads_its_neighbours_is_found_out(dtype: torch.dtype):
    # So small a leak passes for rounding in bfloat16, as a convolution over the row does; its cause does not.
    model = build("Llama").to(dtype)

    def leak(module: nn.Module, args: object, output: tuple[torch.Tensor, object]) -> tuple[torch.Tensor, object]:
        return output[0] + 0.05 * output[0].roll(1, dims=1), output[1]

    model.model.layers[0].self_attn.register_forward_hook(leak)
    choice = choose_layout(model, COMPUTE, 100)
    assert choice.compute.layout is Layout.padded
    assert "it differs by" in choice.line or "a pair's neighbour in the row moves it by" in choice.line
    if dtype is torch.bfloat16:
        assert "a pair's neighbour in the row moves it by" in choice.line
