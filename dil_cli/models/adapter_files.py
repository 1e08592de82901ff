"""The folder of an adapter: `adapter_config.json` and safetensors, and the base that it names; no whole model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dil_cli import hub
from dil_cli.config.adapting import AdapterKind, PeftConfig
from dil_cli.config.schema import ModelConfig
from dil_cli.errors import DilError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def adapter_config(path: str) -> dict[str, Any] | None:
    """`adapter_config.json` of a folder that holds an adapter and not a whole model; None of any other path.

    Raises:
        DilError: when it cannot be read.
    """
    file = Path(path).expanduser() / CONFIG
    if not file.is_file() or (file.parent / "config.json").is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DilError(f"the adapter's config cannot be read: {error}", str(file), "save the adapter again") from error


def base_path(path: str) -> str:
    """The base of an adapter, a folder or hub id; of a whole model its own path.

    Raises:
        DilError: when the adapter is not whole, is of another kind than LoRA, names no base, or one that is not there.
    """
    adapter = adapter_config(path)
    if adapter is None:
        return path
    if not (Path(path).expanduser() / WEIGHTS).is_file():  # or peft would take a pickle, or look on the hub
        raise DilError(
            f"the adapter has no {WEIGHTS}, and dil loads no pickle", path,
            "save it again with a present peft: model.save_pretrained(folder)",
        )  # fmt: skip
    kind = adapter.get("peft_type")
    if kind != "LORA":
        raise DilError(
            f"the adapter is of the kind {kind}, dil reads LoRA and DoRA", path, "merge it with peft: merge_and_unload"
        )
    base = str(adapter.get("base_model_name_or_path") or "")
    where = f"base_model_name_or_path in {path}/{CONFIG}"
    if not base:
        raise DilError("the adapter does not say which model it belongs to", where, "write the base's folder there")
    if not hub.may_be_id(base) and not (Path(base).expanduser() / "config.json").is_file():
        raise DilError(f"the adapter's base {base} is not there", where, "bring it back, or write its folder there")
    return base


def base_config(model: ModelConfig) -> ModelConfig:
    """`model` with the path and revision of the whole model that its weights are of: an adapter's base, or itself.

    Raises:
        DilError: as `base_path`.
    """
    adapter = adapter_config(model.path)
    if adapter is None:
        return model
    return replace(model, path=base_path(model.path), revision=adapter.get("revision"))


def has_tokenizer(folder: Path) -> bool:
    """Whether the adapter brings its own."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def check_start(model: ModelConfig, peft: PeftConfig) -> None:
    """What is trained must be what `model.path` holds: an adapter is trained on as it is, a whole model by any means.

    Raises:
        DilError: when they do not go together, with the words that do; and as `base_path`.
    """
    adapter = adapter_config(model.path)
    if adapter is None:
        return
    if not peft.trains_adapter:
        raise DilError(
            "the model folder has no config.json, it is an adapter and no whole model", f"model.path={model.path}",
            f"peft=lora trains it on; dil export {model.path} --merge --to DIR makes a whole model of it",
        )  # fmt: skip
    base_path(model.path)
    has = {
        "kind": AdapterKind.dora if adapter.get("use_dora") else AdapterKind.lora,
        "r": adapter.get("r"),
        "alpha": adapter.get("lora_alpha"),
    }
    if peft.kind is AdapterKind.qlora and has["kind"] is AdapterKind.lora:
        has["kind"] = AdapterKind.qlora  # the same adapter, beside weights in four bits
    other = [key for key, value in has.items() if getattr(peft, key) != value]
    if other:
        given, there = (", ".join(f"{key} {_shown(of(key))}" for key in other) for of in (vars(peft).get, has.get))
        words = f"peft={_shown(has['kind'])} peft.r={has['r']} peft.alpha={has['alpha']}"
        raise DilError(
            f"the run continues an adapter with {there}, the config says {given}", f"model.path={model.path}", words
        )
    if peft.targets is not None:
        raise DilError(
            "the run continues an adapter, which has its layers already", f"peft.targets={peft.targets}",
            "peft.targets=null",
        )  # fmt: skip


def _shown(value: Any) -> str:
    return value.value if isinstance(value, AdapterKind) else str(value)
