"""Load a policy and its tokenizer from a hub id, a folder, or the package; refuse what cannot be trained."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dil_cli import hub
from dil_cli.config.schema import ModelConfig, WeightType
from dil_cli.errors import DilError
from dil_cli.models.adapter_files import adapter_config, base_config, has_tokenizer
from dil_cli.models.adapters import function_facts, read_adapter, without_adapter
from dil_cli.models.quantised import four_bits

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BUNDLED = Path(__file__).resolve().parent.parent / "bundled" / "models"
DROPOUT_FIELDS = (
    "attention_dropout", "hidden_dropout", "activation_dropout", "dropout", "resid_dropout", "embd_dropout",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "classifier_dropout", "residual_dropout", "embedding_dropout",
)  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """A causal language model with its tokenizer.

    `source` is the folder or hub id it came from, `notices` what the user should know of the loading. `base_sha256` is
    the fingerprint of the weights below an adapter that is new: then they alone are what the policy starts from.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    notices: tuple[str, ...]
    base_sha256: str | None = None

    def start_fingerprint(self) -> str:
        """`weights_fingerprint` of the model that training starts from; to be asked before the first step."""
        return self.base_sha256 or weights_fingerprint(self.model)

    def as_reference(self) -> AbstractContextManager[None]:
        """While this lasts, before the first step, `model` computes what the reference does: without a new adapter."""
        return nullcontext() if self.base_sha256 is None else without_adapter(self.model)


def resolve_source(config: ModelConfig) -> str:
    """The folder or hub id behind `model.path`.

    Raises:
        DilError: for a bundled name or a folder that does not exist, or a hub id that cannot be had offline.
    """
    path = config.path
    if path.startswith("bundled:"):
        folder = BUNDLED / path.removeprefix("bundled:")
        if not (folder / "config.json").is_file():
            shipped = ", ".join(sorted(f.parent.name for f in BUNDLED.glob("*/config.json"))) or "none"
            raise DilError(
                f"no bundled model '{path.removeprefix('bundled:')}'",
                f"model.path={path}",
                f"bundled models: {shipped}",
            )
        return str(folder)
    folder = Path(path).expanduser()
    if folder.is_dir():
        if config.revision is not None:
            raise DilError(
                "a folder has no revisions, model.revision is of hub ids",
                f"model.path={path} model.revision={config.revision}", "model.revision=null",
            )  # fmt: skip
        if not (folder / "config.json").is_file():
            adapter = (folder / "adapter_config.json").is_file()
            raise DilError(
                f"the model folder has no config.json{', it is an adapter and no whole model' if adapter else ''}",
                f"model.path={path}",
                f"dil export {path} --merge --to DIR makes a whole model of it" if adapter
                else "name the folder that save_pretrained wrote",
            )  # fmt: skip
        return str(folder)
    if folder.is_file():
        raise DilError(f"{path} is a file, a model is a folder", f"model.path={path}", f"model.path={folder.parent}")
    if not hub.may_be_id(path):
        raise DilError(
            f"there is no model folder {path}",
            f"model.path={path}",
            "model.path=/path/to/folder or a hub id org/name",
        )
    return path


def load_policy(config: ModelConfig, quantised: bool = False, dropout: float = 0.0) -> Policy:
    """Load weights (in `model.dtype`) and the tokenizer, on the CPU, with dropout off.

    Args:
        config: the path may be an adapter's too, which is then put on its base (`models/adapters.py`).
        quantised: hold the weights of linear layers in four bits, on the GPU (`models/quantised.py`).
        dropout: of an adapter that is read, in training steps.

    Raises:
        DilError: when something is missing, cannot be reached, or is no causal language model.
    """
    base = base_config(config)
    source = _reachable_source(base)
    hf_config = _load_config(source, base)
    if Path(source).is_dir():
        _check_weight_files(Path(source), base)
    tokenizer = read_tokenizer(config)
    notices = _drop_dropout(hf_config)
    if config.dtype is WeightType.bf16:
        notices += ("weights in bfloat16: changes below 0.4 % of a weight are lost, as most are at a rate of 5e-7",)
    model, left_out = _load_weights(source, base, hf_config, quantised)
    notices += left_out
    if base is not config:
        read_adapter(model, Path(config.path).expanduser(), dropout)
    _check_fit(model, tokenizer, config)
    if config.gradient_checkpointing:
        enable: Any = model.activation_checkpointing_enable  # untyped in transformers
        enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return Policy(model=model, tokenizer=tokenizer, source=source, notices=notices)


def read_config(config: ModelConfig) -> PretrainedConfig:
    """The model's config.json, of a model that can be trained, with dropout off; an adapter's is that of its base.

    Raises:
        DilError: as `load_policy`.
    """
    base = base_config(config)
    hf_config = _load_config(_reachable_source(base), base)
    _drop_dropout(hf_config)
    return hf_config


def read_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer; an adapter's own (and its chat template) where it brings one.

    Raises:
        DilError: as `load_policy`.
    """
    folder = Path(config.path).expanduser()
    if adapter_config(config.path) is not None and has_tokenizer(folder):
        return _load_tokenizer(str(folder), replace(config, revision=None))
    base = base_config(config)
    return _load_tokenizer(_reachable_source(base), base)


def weights_fingerprint(model: PreTrainedModel) -> str:
    """sha256 over the names, shapes and bytes of all parameters, in name order, and how an adapter is added to them."""
    import torch

    from dil_cli.distributed.tensors import whole

    digest = hashlib.sha256()
    if facts := function_facts(model):
        digest.update(json.dumps(facts, sort_keys=True, default=sorted).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(whole(parameter).cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _reachable_source(config: ModelConfig) -> str:
    source = resolve_source(config)
    if not Path(source).is_dir() and not hub.reachable():
        hub.work_offline()  # the hub's local cache may have it
    return source


def _common(config: ModelConfig) -> dict[str, Any]:
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


def _load_tokenizer(source: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in files):
        raise DilError(
            "the model folder has no tokenizer", where=f"model.path={config.path}",
            fix="save the tokenizer beside the weights: tokenizer.save_pretrained(folder)",
        )  # fmt: skip
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **_common(config))
    except Exception as error:
        raise _load_error(error, "tokenizer", source, config) from error
    if tokenizer.eos_token_id is None:
        raise DilError(
            "the tokenizer has no EOS token, so a response has no end to learn", where=f"model.path={config.path}",
            fix='set "eos_token" in tokenizer_config.json',
        )  # fmt: skip
    return tokenizer


def _load_config(source: str, config: ModelConfig) -> PretrainedConfig:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    try:
        hf_config: PretrainedConfig = AutoConfig.from_pretrained(source, **_common(config))
    except Exception as error:
        raise _load_error(error, "config.json", source, config) from error
    if getattr(hf_config, "is_encoder_decoder", False):
        raise DilError(
            f"{hf_config.model_type} is an encoder-decoder, dil trains causal language models",
            where=f"model.path={config.path}", fix="choose a decoder-only model",
        )  # fmt: skip
    if hf_config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(hf_config, "is_decoder", False):
        raise DilError(
            f"{hf_config.model_type} is an encoder, dil trains causal language models",
            where=f"model.path={config.path}", fix="choose a decoder-only model",
        )  # fmt: skip
    own_code = getattr(hf_config, "auto_map", None) or {}
    if hf_config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "AutoModelForCausalLM" not in own_code:
        raise DilError(
            f"{hf_config.model_type} is no causal language model", where=f"model.path={config.path}",
            fix="choose a decoder-only model",
        )  # fmt: skip
    quantised = getattr(hf_config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise DilError(
            f"the weights are quantised ({method}), dil trains float weights", where=f"model.path={config.path}",
            fix="take the model they were made from, or save them dequantised",
        )  # fmt: skip
    return hf_config


def _check_weight_files(folder: Path, config: ModelConfig) -> None:
    """All weights are there, as safetensors: a pickle can run code, so none is opened."""
    where = f"model.path={config.path}"
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            missing = [name for name in shards if not (folder / name).is_file()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DilError(f"{index.name} is damaged", where, "save or download the model again") from error
        if missing:
            raise DilError(
                f"{len(missing)} of {len(shards)} files with weights are missing ({missing[0]})", where,
                "download the model again",
            )  # fmt: skip
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.name.startswith("pytorch_model"))
    if pickles:
        raise _pickle_error(config, f" ({pickles[0]})")
    raise DilError(
        "the model folder has no weights (model.safetensors)", where, "name the folder that save_pretrained wrote"
    )


def _pickle_error(config: ModelConfig, file: str = "") -> DilError:
    return DilError(
        f"the weights are a pickle{file}, which could run code, so dil does not open it", f"model.path={config.path}",
        "if you trust it: AutoModelForCausalLM.from_pretrained(IT).save_pretrained(FOLDER) writes safetensors",
    )  # fmt: skip


def _load_weights(
    source: str, config: ModelConfig, hf_config: PretrainedConfig, quantised: bool
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model, and what of its checkpoint went unused."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # dil shows its own progress, and says in three lines what transformers reports in twenty.
    for quiet in (logging.disable_progress_bar, logging.set_verbosity_error):
        silence: Any = quiet
        silence()
    dtype = torch.bfloat16 if config.dtype is WeightType.bf16 else torch.float32
    attention = None if config.attention == "packed" else config.attention
    auto: Any = AutoModelForCausalLM  # its types do not know of output_loading_info
    try:
        model, report = auto.from_pretrained(
            source, config=hf_config, dtype=dtype, attn_implementation=attention,
            use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **_common(config),
            **(four_bits() if quantised else {}),
        )  # fmt: skip
    except Exception as error:
        if attention is not None and isinstance(error, ImportError | ValueError) and "attention" in str(error).lower():
            raise DilError(
                f"{config.path} cannot have the attention {attention} here", where="model.attention",
                fix="model.attention=packed",
            ) from error  # fmt: skip
        raise _load_error(error, "weights", source, config) from error
    missing = sorted(report["missing_keys"]) if report["missing_keys"] else []
    if missing:
        raise DilError(
            f"the checkpoint lacks {len(missing)} weights, which would start at random ({missing[0]}, ...)",
            where=f"model.path={config.path}", fix="use a complete checkpoint of a causal language model",
        )  # fmt: skip
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, stored, wanted = mismatched[0]
        raise DilError(
            f"{len(mismatched)} weights have another shape than config.json says "
            f"({name} is {tuple(stored)}, not {tuple(wanted)})",
            where=f"model.path={config.path}", fix="use the config.json that belongs to these weights",
        )  # fmt: skip
    broken = next((name for name, p in model.named_parameters() if not p.isfinite().all()), None)
    if broken is not None:
        raise DilError(
            f"the weights hold NaN or infinity ({broken})", where=f"model.path={config.path}",
            fix="use a checkpoint from before they broke",
        )  # fmt: skip
    unused = sorted(report["unexpected_keys"])
    notice = f"{len(unused)} weights of the checkpoint are not the model's and stay out of it ({', '.join(unused[:3])})"
    return model, (notice,) if unused else ()


def _drop_dropout(hf_config: PretrainedConfig) -> tuple[str, ...]:
    """Set every dropout to 0: with it on, the policy differs from the reference before the first step."""
    changed = [name for name in DROPOUT_FIELDS if getattr(hf_config, name, 0)]
    for name in changed:
        setattr(hf_config, name, 0.0)
    return (f"dropout set to 0 ({', '.join(changed)})",) if changed else ()


def _check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    # Not their number alone: a token may have been given an id far above the others.
    tokens = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))
    if tokens > rows:
        raise DilError(
            f"the tokenizer has {tokens} tokens, the model's embedding {rows} rows",
            where=f"model.path={config.path}", fix="use the tokenizer that belongs to these weights",
        )  # fmt: skip


def check_length(model: PreTrainedModel, max_length: int, max_prompt_length: int) -> None:
    """`data.max_length` must fit the model's positions, which must mean the same in every row.

    Raises:
        DilError: naming the most that fits.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise DilError(
            f"data.max_length is {max_length}, the model has {positions} positions",
            where="data.max_length", fix=_shorter(positions, max_prompt_length),
        )  # fmt: skip
    turn = _longrope_turn(model.config)
    if turn is not None and max_length > turn:
        raise DilError(
            f"in a row of more than {turn} tokens the model numbers positions in another way (longrope), "
            "so a pair's log-probs would depend on its neighbours",
            where="data.max_length", fix=_shorter(turn, max_prompt_length),
        )  # fmt: skip


def _shorter(length: int, max_prompt_length: int) -> str:
    prompt = f" data.max_prompt_length={max(1, length // 2)}" if max_prompt_length >= length else ""
    return f"data.max_length={length}{prompt}"


def _longrope_turn(config: PretrainedConfig) -> int | None:
    """Tokens of the longest row up to which longrope keeps its short factors; None without longrope."""
    rope: Any = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    for kind in kinds:
        if kind.get("rope_type") == "longrope":
            turn: int | None = kind.get("original_max_position_embeddings")
            return turn or getattr(config.get_text_config(), "original_max_position_embeddings", None)
    return None


def _load_error(error: Exception, what: str, source: str, config: ModelConfig) -> DilError:
    said = " ".join(str(error).split())[:300]
    first = said if " " in said else f"{type(error).__name__} {said}"
    if not Path(source).is_dir() and not hub.reachable():
        return hub.offline_error(source, "model", "model")
    if "cannot be loaded with `safetensors`" in str(error):
        return _pickle_error(config)
    if "trust_remote_code" in str(error):
        return DilError(
            f"{source} needs code from its repository to run", where=f"model.path={config.path}",
            fix="read that code, then model.trust_remote_code=true",
        )  # fmt: skip
    fix = "the files are damaged or incomplete: save or download the model again"
    return DilError(f"the {what} of {source} cannot be loaded: {first}", f"model.path={config.path}", fix)
