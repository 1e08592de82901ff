"""A policy on its device, seen to be right in the rows it will be given; training and `dil eval` begin here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dil_cli import hub
from dil_cli.config.schema import DataConfig, DataSource, Device, ModelConfig, Precision, WeightType
from dil_cli.distributed.shard import first_layers
from dil_cli.distributed.world import ALONE, World
from dil_cli.dynamics.layout import Choice, choose_layout
from dil_cli.dynamics.measure import Compute
from dil_cli.errors import DilError
from dil_cli.models.adapter_files import adapter_config
from dil_cli.models.load import Policy, check_length, load_policy
from dil_cli.models.matmul import choose_matmul

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dil_cli.tracking.console import ConsoleSink


ENOUGH_LAYERS = 6
"""Every kind of layer of a model is among them: full attention comes with every sixth at the latest (Gemma 3)."""


@dataclass(frozen=True)
class Ready:
    """A policy on its device and how to compute with it; `path` says that in a line."""

    policy: Policy
    compute: Compute
    path: str


def ready_policy(
    model: ModelConfig,
    data: DataConfig,
    device: Device,
    precision: Precision,
    token_budget: int,
    console: ConsoleSink,
    load: Callable[[ModelConfig], Policy] = load_policy,
    world: World = ALONE,
) -> Ready:
    """Load a policy (by `load`) and see how it takes rows; the processes of `world` then share them.

    Raises:
        DilError: for a device or model that cannot be computed with, or lengths that it does not take.
    """
    place = pick_device(device)
    with console.phase("loading the model", None):
        policy = load(model)
        check_length(policy.model, data.max_length, data.max_prompt_length)
        # A model that is parted over GPUs may be too large for one of them: it waits in the machine's memory.
        waits = world.sharded and place.type != "cpu"
        if not waits:
            _move(policy.model, place)
    pad = policy.tokenizer.pad_token_id
    compute = Compute(
        device=place,
        bf16=model.dtype is WeightType.bf16 or use_bf16(precision, place),
        token_budget=token_budget,
        pad_id=policy.tokenizer.eos_token_id if pad is None else pad,
        world=world,
    )
    matmul = choose_matmul(place, policy.model.config.get_text_config().hidden_size)
    path = f"rows: padded ({model.attention})"
    if model.attention == "packed":
        with console.phase("checking packed rows", None):
            if waits:
                choice = _choose_by_first_layers(policy.model, compute, data.max_length)
            else:
                choice = choose_layout(policy.model, compute, data.max_length)
        compute, path = choice.compute, choice.line
    return Ready(policy, compute, f"{path}; float32 products: {matmul}")


def _choose_by_first_layers(model: PreTrainedModel, compute: Compute, max_length: int) -> Choice:
    """As `choose_layout`, with a part of the model on the device; all of it is in the machine's memory afterwards."""
    with first_layers(model, ENOUGH_LAYERS):
        _move(model, compute.device)
        choice = choose_layout(model, compute, max_length)
        _move(model, torch.device("cpu"))
    model.set_attn_implementation(choice.attention)  # which the other layers ask for too
    return choice


def _move(model: PreTrainedModel, device: torch.device) -> None:
    with_lost_types: Any = model  # by the wrapper that transformers puts round `to`
    with_lost_types.to(device)


def is_local(model_path: str) -> bool:
    """Whether a model, and the base of an adapter, is on this machine by its name alone."""
    base = (adapter_config(model_path) or {}).get("base_model_name_or_path")
    paths = [model_path, base or model_path]
    return all(path.startswith("bundled:") or Path(path).expanduser().is_dir() for path in paths)


def stay_offline_if_local(model_path: str, data: DataConfig) -> None:
    """No library shall look for the hub when neither model nor data is there; before they are imported."""
    if is_local(model_path) and data.source is not DataSource.hub:
        hub.work_offline()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pick_device(device: Device) -> torch.device:
    """The accelerator if there is one and none was named.

    Raises:
        DilError: when the named device is not there.
    """
    there = {
        Device.cuda: torch.cuda.is_available(),
        Device.mps: torch.backends.mps.is_available(),
        Device.cpu: True,
    }
    if device is Device.auto:
        return torch.device(next(kind.value for kind, available in there.items() if available))
    if not there[device]:
        raise DilError(f"this machine has no {device.value} device", where=f"device={device.value}", fix="device=auto")
    return torch.device(device.value)


def use_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether the forward pass runs under bfloat16 autocast: by default where the device multiplies it natively."""
    if precision is Precision.auto:
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision is Precision.bf16
