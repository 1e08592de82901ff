"""A checkpoint: a Hugging Face folder that `AutoModelForCausalLM` loads, whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dil_cli.files import replacing, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    manifest: dict[str, Any],
) -> None:
    """Write weights (in the type they are held in), tokenizer with the chat template in use, and the manifest."""
    with replacing(folder) as temporary:
        model.save_pretrained(temporary)
        own = tokenizer.chat_template
        tokenizer.chat_template = template
        try:
            tokenizer.save_pretrained(temporary)
        finally:
            tokenizer.chat_template = own
        write_json(temporary / "dil_manifest.json", manifest)
