"""A checkpoint: a Hugging Face folder that `AutoModelForCausalLM` or, an adapter, peft loads; whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dil_cli.distributed.tensors import to_write
from dil_cli.distributed.world import ALONE, World
from dil_cli.files import replacing, write_json
from dil_cli.models.adapters import has_adapter, save_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    manifest: dict[str, Any],
    world: World = ALONE,
) -> None:
    """Write weights (in the type they are held in), tokenizer with the chat template in use, and the manifest.

    All processes of `world` give their parts of the weights, and the main one writes.
    """
    weights = _whole_weights(model, world) if world.sharded else None
    world.on_main(lambda: _write(folder, model, tokenizer, template, manifest, weights))


def _write(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    manifest: dict[str, Any],
    weights: dict[str, Tensor] | None,
) -> None:
    """Weights in their own type (an adapter alone), the tokenizer with the chat template in use, the manifest."""
    with replacing(folder) as temporary:
        if has_adapter(model):
            save_adapter(model, temporary, weights)
        else:
            model.save_pretrained(temporary, state_dict=weights)
        own = tokenizer.chat_template
        tokenizer.chat_template = template
        try:
            tokenizer.save_pretrained(temporary)
        finally:
            tokenizer.chat_template = own
        write_json(temporary / "dil_manifest.json", manifest)


def _whole_weights(model: PreTrainedModel, world: World) -> dict[str, Tensor]:
    """On the CPU of the main process; one after the other, so that no GPU must hold more than one of them whole."""
    made: dict[int, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in made:  # a tied weight has two names and is one
            made[id(value)] = to_write(value, world)
        weights[name] = made[id(value)]
    return weights
