"""Tensors that lie in parts over the processes, made whole and taken apart again."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from dil_cli.distributed import zero3
from dil_cli.distributed.world import World


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, detached, in every process; all of them must ask."""
    if zero3.is_parted(tensor):
        return zero3.gather(tensor)
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def to_write(tensor: Tensor, world: World) -> Tensor:
    """The whole tensor on the CPU of the main process, which writes it; nothing elsewhere. All of them must ask."""
    gathered = whole(tensor)
    if not world.is_main:
        return gathered.new_empty(0)
    # What is gathered of uneven parts is a view of more, which safetensors does not take.
    return gathered.cpu().clone(memory_format=torch.contiguous_format) if world.sharded else gathered.cpu().contiguous()


def put(place: Tensor, value: Tensor) -> None:
    """Copy the whole `value`, which each process has, into `place`, of which it may hold a part."""
    if zero3.is_parted(place):
        zero3.put(place, value)
        return
    with torch.no_grad():
        place.copy_(part_like(place, value))


def part_like(place: Tensor, value: Tensor) -> Tensor:
    """This process's part of the whole `value`, as `place` is parted."""
    if zero3.is_parted(place):
        return zero3.part_of(place, value)
    if not isinstance(place, DTensor):
        return value
    on_device = value.to(place.to_local().device)
    return distribute_tensor(on_device, place.device_mesh, place.placements, src_data_rank=None)


def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """2-norm over all of them as wholes; all processes must ask."""
    values = list(parameters)
    if any(map(zero3.is_parted, values)):
        return zero3.norm(zero3.own_part(value, value.ds_tensor) for value in values)  # type: ignore[attr-defined]
    return whole(torch.nn.utils.get_total_norm([value.detach() for value in values]))


def clip(parameters: Iterable[torch.nn.Parameter], limit: float) -> Tensor:
    """Scale the gradient down to a 2-norm of `limit`; returns its norm before, which may be non-finite."""
    values = list(parameters)
    if any(map(zero3.is_parted, values)):
        return zero3.clip(values, limit)
    return whole(torch.nn.utils.clip_grad_norm_(values, limit))
