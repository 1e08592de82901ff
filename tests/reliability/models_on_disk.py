"""Model folders as they lie about on disks: each function makes of a good one a folder with one thing wrong or odd."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

Change = Callable[[Path], None]


def change_json(name: str, **values: Any) -> Change:
    """Set some keys of a JSON file; a value of ... takes the key out."""

    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return change


def write(name: str, content: bytes) -> Change:
    """Put this content in the place of a file."""
    return lambda folder: (folder / name).write_bytes(content) and None


def remove(*names: str) -> Change:
    """Take files out."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def change_weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Edit the tensors in the weights file."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        edit(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def cut(name: str, keep: float) -> Change:
    """Only the first part of a file, as after a broken download."""

    def change(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * keep)])

    return change


def in_shards(folder: Path) -> None:
    """The weights in two files with an index, as `save_pretrained` writes large models."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    for shard, part in zip(SHARDS, parts, strict=True):
        save_file({name: tensors[name] for name in part}, folder / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, part in zip(SHARDS, parts, strict=True) for name in part}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


def in_pickle(folder: Path) -> None:
    """The weights as older checkpoints have them, in a pickle."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def in_harmful_pickle(folder: Path) -> None:
    """A pickle that leaves a file behind when it is opened."""

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (folder / "the pickle ran",)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    (folder / WEIGHTS).unlink()


def of_kind(model: str, config: str, **shape: Any) -> Change:
    """The weights and the config of another architecture, beside the same tokenizer."""

    def change(folder: Path) -> None:
        torch.manual_seed(0)
        made = getattr(transformers, model)(getattr(transformers, config)(**shape))
        made.save_pretrained(folder)

    return change


def more_tokens(*tokens: str, at: int | None = None) -> Change:
    """Tokens added to the tokenizer and not to the model; `at` gives the first an id of its own."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        first = len(content["model"]["vocab"]) if at is None else at
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        content["added_tokens"] += [{"id": first + i, "content": token, **flags} for i, token in enumerate(tokens)]
        path.write_text(json.dumps(content))

    return change


def template(text: str) -> Change:
    """Another chat template."""
    return lambda folder: (folder / "chat_template.jinja").write_text(text) and None


def several(*changes: Change) -> Change:
    """One change after the other."""

    def change(folder: Path) -> None:
        for step in changes:
            step(folder)

    return change


def made(good: Path, change: Change, folder: Path) -> Path:
    """A copy of the good model with this change."""
    shutil.copytree(good, folder)
    change(folder)
    return folder
