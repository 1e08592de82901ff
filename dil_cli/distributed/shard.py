"""Weights, gradient and optimiser in parts over the processes: torch's `fully_shard`, layer by layer (FSDP2).

Before a layer computes, its weights are gathered, and after its backward pass its gradient is summed and parted. The
embedding, the last norm and the vocabulary head are gathered once a pass, by the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from dil_cli.config.distributing import DistributedConfig, Sharding
from dil_cli.distributed.world import World
from dil_cli.errors import DilError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shard(
    model: PreTrainedModel, config: DistributedConfig, world: World, device: torch.device, bf16: bool, passes: str
) -> None:
    """Part the weights of `model`, the same in every process, in place.

    Args:
        model: on `device` or in the machine's memory, from where one layer after the other is taken and parted.
        config: whether the parts wait in the machine's memory.
        world: the processes; nothing is done where they hold all, or DeepSpeed will part the model (`zero3.py`).
        device: that computes.
        bf16: gather weights in bfloat16, as they are multiplied; they are held, and gradients summed, in theirs.
        passes: the name of the method by which rows pass through the model, other than `forward`.

    Raises:
        DilError: when the model has no layers that can be told apart, or nothing can be offloaded.
    """
    if not world.sharded:
        return
    if config.offload and device.type != "cuda":
        raise DilError(
            "there is no GPU whose memory could be saved", "distributed.offload=true", "distributed.offload=false"
        )
    if config.kind is Sharding.zero3:
        return
    mesh = init_device_mesh(device.type, (world.size,))
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": half if bf16 else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy() if config.offload else OffloadPolicy(),
    }
    for layer in layers_of(model):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    register_fsdp_forward_method(model, passes)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers, which transformers keeps in the longest list of modules.

    Raises:
        DilError: when there is none.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise DilError(
            f"{type(model).__name__} has no list of layers to be parted by", "distributed=fsdp2", "distributed=ddp"
        )
    longest: nn.ModuleList = max(lists, key=lambda modules: len(list(modules)))
    return longest


@contextmanager
def first_layers(model: PreTrainedModel, number: int) -> Iterator[None]:
    """While this lasts the model has no more than its first `number` layers, and is small wherever it is moved to."""
    layers = layers_of(model)
    parents = [
        (module, name) for module in model.modules() for name, child in module.named_children() if child is layers
    ]
    for module, name in parents:
        setattr(module, name, layers[:number])
    try:
        yield
    finally:
        for module, name in parents:
            setattr(module, name, layers)
