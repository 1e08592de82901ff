"""Low-rank adapters (LoRA, DoRA) on a model's linear layers, by peft: put on, read, left out, saved.

They are injected into the model, which stays what it was to everything else: its body, its head and its attention are
found where they were, and rows are packed for it as without.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dil_cli.config.adapting import AdapterKind, PeftConfig
from dil_cli.errors import DilError
from dil_cli.models.adapter_files import WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

NAME = "default"
PREFIX = "base_model.model."
"""Before each name in an adapter's file, for the two wrappers that peft itself would put round the model."""

NOT_FUNCTION = {
    "base_model_name_or_path", "inference_mode", "lora_dropout", "peft_version", "revision", "task_type",
    "auto_mapping", "init_lora_weights",
}  # fmt: skip
"""Fields of an adapter's config that leave its log-probs as they are."""


def has_adapter(model: nn.Module) -> bool:
    """Whether one was put on the model."""
    return hasattr(model, "peft_config")


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of the decoder blocks by their full names, fused ones and GPT-2's Conv1D too; not the head.

    Raises:
        DilError: when there are none.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    stacks = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    sizes = {name: sum(p.numel() for p in stack.parameters()) for name, stack in stacks.items()}
    blocks = max(sizes, key=lambda name: sizes[name], default=None)
    found: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if blocks is not None and name.startswith(f"{blocks}.") and isinstance(module, nn.Linear | Conv1D)
    }
    if not found:
        raise DilError(
            f"{model.config.model_type} has no linear layers in decoder blocks to put adapters on", "peft", "peft=none"
        )
    return found


def choose_targets(model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
    """Names that peft finds those of `linear_layers` by whose name ends in one of `wanted`; all without it.

    They are the last parts of the layers' names, or whole names where something else is called the same.

    Raises:
        DilError: when a wanted name is of no linear layer.
    """
    layers = linear_layers(model)
    ends = sorted({_end(name) for name in layers})
    unknown = [name for name in wanted or () if name not in ends]
    if unknown:
        raise DilError(
            f"no linear layer of the decoder blocks is called {', '.join(unknown)}", "peft.targets",
            f"some of [{','.join(ends)}], or null for all",
        )  # fmt: skip
    chosen = list(wanted or ends)
    others = {_end(name) for name, _ in model.named_modules() if name not in layers}
    if others & set(chosen):
        return [name for name in layers if _end(name) in chosen]
    return chosen


def count_adapter(model: PreTrainedModel, peft: PeftConfig) -> int:
    """How many numbers an adapter on `model` trains, which may be on the meta device."""
    from torch import nn

    chosen = set(choose_targets(model, peft.targets))
    layers: Any = [layer for name, layer in linear_layers(model).items() if {name, _end(name)} & chosen]
    assert peft.r is not None
    lengths = peft.kind is AdapterKind.dora
    return sum(
        peft.r * sum(layer.weight.shape) + lengths * layer.weight.shape[0 if isinstance(layer, nn.Linear) else 1]
        for layer in layers
    )


def add_adapter(model: PreTrainedModel, peft: PeftConfig, base: str, revision: str | None, seed: int) -> None:
    """Freeze `model` and put a new adapter on it, float32 whatever the weights are; it changes no log-prob yet.

    Args:
        model: the base, whose modules are replaced.
        peft: which adapter.
        base: the folder or hub id of the base, to be named in the adapter's config.
        revision: of the hub id.
        seed: of the random half of the adapter.

    Raises:
        DilError: as `choose_targets`.
    """
    import torch
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    assert peft.r is not None
    config = LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=base, revision=revision, r=peft.r, lora_alpha=peft.alpha,
        lora_dropout=peft.dropout, use_dora=peft.kind is AdapterKind.dora,
        target_modules=choose_targets(model, peft.targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear_layers(model).values()),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            _inject(config, model)
        except ValueError as error:  # of architectures that peft knows not to take them
            raise DilError(f"{model.config.model_type} takes no such adapter: {error}", "peft", "peft=none") from error


def read_adapter(model: PreTrainedModel, folder: Path, dropout: float = 0.0) -> None:
    """Freeze `model` and put the adapter in `folder` on it, to be trained on or (frozen too) measured.

    Raises:
        DilError: when it does not fit.
    """
    from peft import PeftConfig as AnyConfig
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        config: Any = AnyConfig.from_pretrained(str(folder))
        config.inference_mode, config.lora_dropout = False, dropout
        _inject(config, model)
        stored = load_file(folder / WEIGHTS)
        outcome = set_peft_model_state_dict(model, {key.removeprefix(PREFIX): x for key, x in stored.items()})
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        lost = [*outcome.unexpected_keys, *trained.intersection(outcome.missing_keys)]
        if lost:
            raise ValueError(f"{len(lost)} of its weights have no place there or are missing ({lost[0]})")
    except Exception as error:  # whatever a damaged or foreign adapter makes peft raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DilError(f"the adapter cannot be put on its base: {first}", str(folder), "save it again") from error


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """While this lasts the model is its base, to the last bit."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_adapter(model: PreTrainedModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write the adapter alone as peft does: `PeftModel.from_pretrained(base, folder)` reads it.

    Args:
        model: with the adapter on it.
        folder: made if it is not there.
        weights: the model's by name, where its own are parts of them in several processes.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # It would look on the hub whether the vocabulary has grown.
    state = get_peft_model_state_dict(model, weights, adapter_name=NAME, save_embedding_layers=False)
    tensors = {f"{PREFIX}{name}": x.detach().cpu().contiguous() for name, x in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = copy.deepcopy(_config(model))
    config.inference_mode = True
    config.save_pretrained(str(folder))


def merge_adapter(model: PreTrainedModel) -> None:
    """Add the adapter to the weights, whose layers are plain linear layers again; exact to the weights' own type."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            layer.merge()
            parent, _, end = name.rpartition(".")
            setattr(model.get_submodule(parent), end, layer.get_base_layer())
    del model.peft_config


def function_facts(model: nn.Module) -> dict[str, Any]:
    """What of an adapter's config its log-probs depend on beside its weights: scale, kind; empty without an adapter."""
    if not has_adapter(model):
        return {}
    return {name: value for name, value in _config(model).to_dict().items() if name not in NOT_FUNCTION}


def describe_adapter(model: PreTrainedModel) -> str:
    """What is trained of the model, in a line."""
    targets = sorted({_end(name) for name in _config(model).target_modules})
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = model.num_parameters()
    line = f"adapters of rank {_config(model).r} on {', '.join(targets)}: {trained:,} of {whole:,} parameters trained"
    return f"{line} ({trained / whole:.2%})"


def base_parameters(model: PreTrainedModel) -> int:
    """The number of parameters, an adapter's that is trained not among them."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) if has_adapter(model) else 0
    return model.num_parameters() - trained


def _inject(config: Any, model: PreTrainedModel) -> None:
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():  # peft asks transformers by an old name
        warnings.simplefilter("ignore", FutureWarning)
        inject_adapter_in_model(config, model, adapter_name=NAME)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model.train(False)  # new modules begin in training mode


def _config(model: nn.Module) -> Any:
    configs: Any = model.peft_config
    return configs[NAME]


def _end(name: str) -> str:
    return name.rpartition(".")[2]
