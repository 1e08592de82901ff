"""Adapters: a folder with `adapter_config.json` and no whole model, read on the base that it names."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dil_cli.config.schema import ModelConfig
from dil_cli.errors import DilError
from dil_cli.models.load import Policy, load_policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INSTALL = "pip install 'dil[eval]'"
WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def adapter_config(path: str) -> dict[str, Any] | None:
    """`adapter_config.json` of a folder that holds an adapter and not a whole model.

    Raises:
        DilError: when it cannot be read.
    """
    file = Path(path).expanduser() / "adapter_config.json"
    if not file.is_file() or (file.parent / "config.json").is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DilError(f"the adapter's config cannot be read: {error}", str(file), "save the adapter again") from error


def base_path(path: str) -> str:
    """The base of an adapter; of a whole model its own path.

    Raises:
        DilError: when the adapter is not whole, names no base, or one that is not there.
    """
    adapter = adapter_config(path)
    if adapter is None:
        return path
    if not (Path(path).expanduser() / WEIGHTS).is_file():  # or peft would take a pickle, or look on the hub
        raise DilError(
            f"the adapter has no {WEIGHTS}, and dil loads no pickle", path,
            "save it again with a present peft: model.save_pretrained(folder)",
        )  # fmt: skip
    base = str(adapter.get("base_model_name_or_path") or "")
    where = f"base_model_name_or_path in {path}/adapter_config.json"
    if not base:
        raise DilError("the adapter does not say which model it belongs to", where, "write the base's folder there")
    local = base.startswith(("/", ".", "~")) or base.count("/") > 1
    if local and not (Path(base).expanduser() / "config.json").is_file():
        raise DilError(f"the adapter's base {base} is not there", where, "bring it back, or write its folder there")
    return base


def load_checkpoint(model: ModelConfig) -> Policy:
    """As `load_policy`, but the path may be an adapter's: its base is loaded and the adapter merged into it.

    Raises:
        DilError: when either cannot be loaded.
    """
    if adapter_config(model.path) is None:
        return load_policy(model)
    policy = load_policy(replace(model, path=base_path(model.path)))
    wrapped, tokenizer = with_adapter(policy.model, policy.tokenizer, model.path)
    return replace(policy, model=wrapped.merge_and_unload(), tokenizer=tokenizer, source=model.path)


def with_adapter(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The base with the adapter on it, and the adapter's own tokenizer (and chat template) where it brings one.

    Raises:
        DilError: when it does not fit, or peft is not installed.
    """
    folder = Path(path).expanduser()
    try:
        from peft import PeftModel
    except ImportError as error:
        raise DilError("an adapter needs peft, which is not installed", path, INSTALL) from error
    from transformers import AutoTokenizer

    try:
        with warnings.catch_warnings():  # peft asks transformers by an old name
            warnings.simplefilter("ignore", FutureWarning)
            model = PeftModel.from_pretrained(base, str(folder))
    except Exception as error:  # whatever a damaged or foreign adapter makes peft raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DilError(f"the adapter cannot be put on its base: {first}", path, "save it again") from error
    if has_tokenizer(folder):
        load: Any = AutoTokenizer.from_pretrained
        tokenizer = load(str(folder), trust_remote_code=False)
    embedding: Any = base.get_input_embeddings()
    if len(tokenizer) > embedding.weight.shape[0]:
        raise DilError(
            f"the adapter's tokenizer has {len(tokenizer)} tokens, its base {embedding.weight.shape[0]} rows for them",
            path, "merge the adapter into its base where it was trained, and name the merged model",
        )  # fmt: skip
    return model, tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether the adapter brings its own."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)
