"""A checkpoint as lm-eval asks it: through transformers or vLLM, whole or as an adapter on its base."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dil_cli import hub
from dil_cli.config.harness_schema import Backend, HarnessConfig
from dil_cli.config.schema import Device, EvalConfig, ModelConfig, Precision, WeightType
from dil_cli.data.template import checked_template
from dil_cli.data.token_cache import tokenizer_fingerprint
from dil_cli.errors import DilError
from dil_cli.evaluate.drift import check_drift, reading_facts
from dil_cli.evaluate.target import Target, data_config, model_config
from dil_cli.models.adapter_files import adapter_config, base_config, has_tokenizer
from dil_cli.models.load import load_policy, resolve_source, weights_fingerprint
from dil_cli.tracking.console import ConsoleSink
from dil_cli.train.ready import is_local, pick_device, use_bf16

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
"""Raise when the way of asking changes: older answers are then no longer found."""
WEIGHTS = ("*.safetensors", "*.bin", "*.json")


@dataclass(frozen=True, eq=False)
class Asked:
    """A model behind lm-eval's interface (`lm`), the chat template it is asked with, and what its answers depend on.

    `key` names the file of its answers: 32 hex digits over the weights, adapter included, the tokenizer, the template,
    the model's and its generation's config, precision, length and versions.
    """

    lm: Any
    template: str | None
    facts: dict[str, Any]
    key: str


def ask_checkpoint(config: EvalConfig, target: Target, console: ConsoleSink) -> Asked:
    """Load a checkpoint.

    Raises:
        DilError: for one that cannot be loaded, a device that is not there, or a template that is not.
    """
    benchmark: HarnessConfig = config.benchmark
    adapter = adapter_config(target.path)
    read = model_config(config, target)
    if is_local(read.path) and benchmark.root is not None:
        hub.work_offline()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    load = _through_vllm if benchmark.backend is Backend.vllm else _through_transformers
    with console.phase(f"loading {target.name}", None):
        lm, tokenizer, identity = load(config, target, read, adapter)
    template = _template(tokenizer, benchmark, target)
    identity |= {
        "format": FORMAT,
        "backend": benchmark.backend.value,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        "max_length": lm.max_length,
        "versions": {name: version(name) for name in ("lm_eval", "transformers", "torch")},
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:32]
    shown = ("weights_sha256", "adapter", "tokenizer_sha256", "template_sha256", "compute", "device", "backend")
    facts = {"path": target.path} | {name: identity[name] for name in shown} | {"max_length": lm.max_length}
    return Asked(lm, template, facts, key)


def _through_transformers(
    config: EvalConfig, target: Target, read: ModelConfig, adapter: dict[str, Any] | None
) -> tuple[Any, PreTrainedTokenizerBase, dict[str, Any]]:
    from lm_eval.models.huggingface import HFLM

    benchmark: HarnessConfig = config.benchmark
    device = pick_device(config.device)
    bf16 = use_bf16(config.precision, device)
    # lm-eval pads its rows: transformers' own attention, or the one that was named.
    dtype = WeightType.bf16 if bf16 else WeightType.fp32
    policy = load_policy(replace(read, dtype=dtype, gradient_checkpointing=False))
    model: Any = policy.model
    tokenizer = policy.tokenizer
    _check_reading(config, target, tokenizer)
    model.to(device)
    identity = {
        "weights_sha256": weights_fingerprint(model),
        "adapter": None if adapter is None else {"base": base_config(read).path, "config": adapter},
        "config": _config_of(model.config),
        "generation": _config_of(model.generation_config),
        "attention": read.attention,
        "compute": "bf16" if bf16 else "fp32",
        "device": device.type,
    }
    lm = HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=benchmark.batch_size,
        max_length=benchmark.max_length,
    )  # fmt: skip
    return lm, tokenizer, identity


def _through_vllm(
    config: EvalConfig, target: Target, read: ModelConfig, adapter: dict[str, Any] | None
) -> tuple[Any, PreTrainedTokenizerBase, dict[str, Any]]:
    if find_spec("vllm") is None:
        raise DilError(
            "the backend vllm needs vLLM, which is not installed", "benchmark.backend=vllm",
            "pip install vllm (a GPU is needed), or benchmark.backend=hf",
        )  # fmt: skip
    from lm_eval.api.registry import get_model
    from transformers import AutoTokenizer

    arguments = vllm_arguments(config, target, read, adapter)
    if target.run is not None:
        load: Any = AutoTokenizer.from_pretrained
        _check_reading(
            config, target, load(arguments.get("tokenizer", arguments["pretrained"]), trust_remote_code=False)
        )
    read = base_config(read)
    lm = get_model("vllm")(**arguments)
    identity = {
        "weights_sha256": _files_sha256(_folder(str(arguments["pretrained"]), read.revision)),
        "adapter": None
        if adapter is None
        else {"base": read.path, "config": adapter, "sha256": _files_sha256(Path(target.path))},
        "compute": arguments["dtype"],
        "device": "cuda",
        "tensor_parallel": arguments["tensor_parallel_size"],
    }
    return lm, lm.tokenizer, identity


def vllm_arguments(
    config: EvalConfig, target: Target, read: ModelConfig, adapter: dict[str, Any] | None
) -> dict[str, Any]:
    """What lm-eval's vLLM model is made with.

    Raises:
        DilError: for a model that is not there, or a device that vLLM does not run on.
    """
    benchmark: HarnessConfig = config.benchmark
    if config.device not in (Device.auto, Device.cuda):
        raise DilError("vLLM runs on a GPU", f"device={config.device.value}", "device=auto")
    read = base_config(read)
    base = resolve_source(read)
    arguments: dict[str, Any] = {
        "pretrained": base,
        "load_format": "safetensors",  # never a pickle
        "dtype": "float32" if config.precision is Precision.fp32 else "bfloat16",
        "revision": read.revision,
        "trust_remote_code": read.trust_remote_code,
        "batch_size": benchmark.batch_size,
        "max_model_len": benchmark.max_length,
        "tensor_parallel_size": benchmark.tensor_parallel,
        "gpu_memory_utilization": benchmark.gpu_memory,
    }
    if adapter is not None:
        arguments |= {"lora_local_path": target.path, "max_lora_rank": int(adapter.get("r", 16))}
        arguments |= {"tokenizer": target.path} if has_tokenizer(Path(target.path)) else {}
    return arguments


def _check_reading(config: EvalConfig, target: Target, tokenizer: PreTrainedTokenizerBase) -> None:
    """Of a run's checkpoint, before lm-eval gives the tokenizer a token to pad with."""
    if target.run is None:
        return
    facts = reading_facts(tokenizer, data_config(config, target))
    if config.benchmark.chat_template is False:  # nothing depends on it
        del facts["template_sha256"]
    check_drift(config, target, facts)


def _template(tokenizer: PreTrainedTokenizerBase, benchmark: HarnessConfig, target: Target) -> str | None:
    if benchmark.chat_template is False:
        return None
    template = checked_template(tokenizer)
    if template is None and benchmark.chat_template:
        raise DilError(
            f"{target.name} has no chat template", "benchmark.chat_template=true",
            "benchmark.chat_template=null, or save the tokenizer with its template",
        )  # fmt: skip
    return template


def _config_of(config: Any) -> dict[str, Any]:
    """What can change an answer; not where the files lay, nor who wrote them."""
    values = dict(config.to_dict())
    return {name: value for name, value in values.items() if name not in {"_name_or_path", "transformers_version"}}


def _folder(path: str, revision: str | None) -> Path:
    """Of a model: its own, or the one in which the hub's library keeps it."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, allow_patterns=list(WEIGHTS)))


def _files_sha256(folder: Path) -> str:
    """Over weights and configs as they lie in files: vLLM does not hand out what it loaded."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
