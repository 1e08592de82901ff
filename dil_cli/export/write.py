"""Read a checkpoint and write it elsewhere: merged, in another type, or as it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dil_cli import hub
from dil_cli.config.schema import ModelConfig, WeightType
from dil_cli.errors import DilError
from dil_cli.export.command import Request
from dil_cli.files import replacing
from dil_cli.models.adapter_files import WEIGHTS, adapter_config, base_path

if TYPE_CHECKING:
    import torch

MANIFEST = "dil_manifest.json"
LEFT_BEHIND = (".*", "eval")
"""Of a checkpoint's folder: measurements of it are of that folder."""


def export(request: Request) -> str:
    """Write the folder, whole or not at all; returns a line that says what it is.

    Raises:
        DilError: as `command.run`.
    """
    folder = find_checkpoint(request.checkpoint)
    adapter = adapter_config(str(folder)) is not None
    if request.merge and not adapter:
        raise DilError(f"{folder} is a whole model, there is nothing to merge", "--merge", "leave --merge out")
    if os.path.lexists(request.to):
        raise DilError(f"{request.to} is there already, and nothing is overwritten", "--to", "--to ANOTHER-FOLDER")
    if os.environ.get("HF_HUB_OFFLINE") is None and Path(base_path(str(folder))).is_dir():
        hub.work_offline()
    from safetensors import SafetensorError

    try:
        with replacing(request.to) as temporary:
            if request.merge:
                _merged(folder, temporary, request)
            else:
                _as_it_is(folder, temporary, request.dtype)
            _check_weights(temporary, folder)
    except OSError as error:
        raise DilError(f"it cannot be written: {error.strerror or error}", f"--to {request.to}", "--to DIR") from error
    except SafetensorError as error:
        raise DilError(
            f"its weights cannot be read: {error}", str(folder), "train it again, or copy it again"
        ) from error
    kind = "model, adapter merged" if request.merge else "adapter" if adapter else "model"
    return f"{kind}: {request.to}"


def find_checkpoint(path: Path) -> Path:
    """The checkpoint's folder: the path itself, or the last one of the run that it is.

    Raises:
        DilError: when it is neither, or the run has not finished.
    """
    if (path / "config.json").is_file() or adapter_config(str(path)) is not None:
        return path
    if not (path / "manifest.json").is_file():
        raise DilError(f"{path} holds neither a run nor a model", f"dil export {path}", "dil export outputs/RUN")
    try:
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
        checkpoint = path / str(result["checkpoint"])
    except FileNotFoundError as error:
        raise DilError(
            f"the run {path.name} is not finished", f"dil export {path}",
            f"dil export {path}/checkpoints/step-..., or finish it with the command that began it",
        ) from error  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DilError("the run's result cannot be read", str(path / "result.json"), "train it again") from error
    if not checkpoint.is_dir() or not checkpoint.resolve().is_relative_to(path.resolve()):
        raise DilError(f"the checkpoint of {path.name} is gone", str(checkpoint), "train it again")
    return checkpoint


def _merged(folder: Path, to: Path, request: Request) -> None:
    """The adapter added to its base in float32, with the adapter's tokenizer."""
    from dil_cli.models.adapters import merge_adapter
    from dil_cli.models.load import load_policy

    policy = load_policy(
        ModelConfig(
            path=str(folder), dtype=WeightType.fp32, trust_remote_code=request.trust_remote_code,
            lr=1.0, batch_size=1, max_length=2, max_prompt_length=1, token_budget=1,
        )
    )  # fmt: skip
    merge_adapter(policy.model)
    model: Any = policy.model  # the wrapper transformers puts round `to` has lost its types
    model.to(_torch_type(request.dtype or "fp32")).save_pretrained(to)
    policy.tokenizer.save_pretrained(to)
    if (folder / MANIFEST).is_file():
        shutil.copy(folder / MANIFEST, to)


def _as_it_is(folder: Path, to: Path, dtype: str | None) -> None:
    """The folder's files, weights in the type asked for."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(*LEFT_BEHIND, "*.bin", "*.pt"))
    files = sorted(to.glob("*.safetensors"))
    if not files:
        raise DilError("the folder has no weights in safetensors, and dil loads no pickle", str(folder), f"{WEIGHTS}")
    if dtype is None:
        return
    kind = _torch_type(dtype)
    for file in files:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        save_file(
            {name: x.to(kind) if x.is_floating_point() else x for name, x in tensors.items()}, file, metadata=metadata
        )
    config = to / "config.json"
    if config.is_file():
        values = json.loads(config.read_text(encoding="utf-8"))
        values["dtype"] = str(kind).removeprefix("torch.")
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _check_weights(written: Path, source: Path) -> None:
    """What was written can be read, and is finite.

    Raises:
        DilError: naming the weight that is not.
    """
    from safetensors import safe_open

    for file in sorted(written.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                if not stored.get_tensor(name).isfinite().all():
                    raise DilError(f"the weight {name} is not finite", str(source), "export an earlier checkpoint")


def _torch_type(dtype: str) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
