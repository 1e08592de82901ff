"""Become one of a run's processes: who started this one, which backend, and who tells the user of an error."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from dil_cli.config.distributing import SHARDED, DistributedConfig, Sharding
from dil_cli.config.schema import Device
from dil_cli.distributed.world import ALONE, World
from dil_cli.distributed.zero3 import check_installed
from dil_cli.errors import DilError, Told
from dil_cli.secrets import hidden

PATIENCE = timedelta(hours=6)
"""How long processes wait for one that reads pairs, or itself waits for another run to compute the reference."""
LAUNCHER_ENDS_S = 15.0
"""A launcher ends the processes of a run within this time after one of them was lost."""


@dataclass(frozen=True)
class Place:
    """This process among those that a launcher started; `local_rank` counts those of this machine."""

    rank: int
    size: int
    local_rank: int


def launched(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place that torchrun, accelerate, submitit or `start.py` gave this process; None where none of them did.

    A job of submitit with one task is none: it may start processes of its own.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= environment.keys():
        return Place(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    if "SUBMITIT_EXECUTOR" in environment:
        from submitit.helpers import TorchDistributedEnvironment

        place = TorchDistributedEnvironment()
        if place.world_size > 1:
            # RANK and the others, for torch; all GPUs stay in sight, `joined` takes one of them by its number.
            place.export(set_cuda_visible_devices=False)
            return Place(place.rank, place.world_size, place.local_rank)
    return None


def to_start(config: DistributedConfig, device: Device) -> int:
    """How many processes this one has to start; 0 where it is one of them, or alone.

    Raises:
        DilError: when the config and the launcher do not agree, nothing says how many, or DeepSpeed is not there.
    """
    if config.kind is Sharding.zero3:
        check_installed()
    place, wanted = launched(), config.processes
    if config.kind is Sharding.none:
        if place is not None and place.size > 1:
            raise DilError(
                f"{place.size} processes were started, and distributed=none is of one", "distributed=none",
                "distributed=ddp, or fsdp2",
            )  # fmt: skip
        return 0
    if place is not None:
        if wanted not in {None, place.size}:
            raise DilError(
                f"the launcher has started {place.size} processes, {wanted} are wanted",
                f"distributed.processes={wanted}", "leave distributed.processes out, the launcher knows it",
            )  # fmt: skip
        return 0
    if wanted is None:
        wanted = torch.cuda.device_count() if device in {Device.auto, Device.cuda} else 0
        if not wanted:
            raise DilError(
                "nothing says how many processes to start, there is no GPU to count", "distributed.processes=null",
                "distributed.processes=2",
            )  # fmt: skip
    return wanted


@contextmanager
def joined(config: DistributedConfig, device: Device) -> Iterator[World]:
    """The world of this process while the context lasts; an error that ends it is told by one process.

    Raises:
        DilError: when this process has no GPU of its own.
    """
    place = launched()
    if config.kind is Sharding.none or place is None:
        yield ALONE
        return
    on_gpu = device in {Device.auto, Device.cuda} and torch.cuda.is_available()
    if on_gpu:
        there = torch.cuda.device_count()
        if place.local_rank >= there:
            raise DilError(
                f"process {place.local_rank + 1} of this machine has no GPU, there are {there}",
                f"distributed.processes={place.size}", f"distributed.processes={there}, or device=cpu",
            )  # fmt: skip
        torch.cuda.set_device(place.local_rank)
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE
    )
    with _told_once(store):
        yield World(rank, size, sharded=config.kind in SHARDED)
        dist.destroy_process_group()


@contextmanager
def _told_once(store: Store) -> Iterator[None]:
    """Whatever ends this process ends it with its exit code, and the first process that it ends says why."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
        if _is_loss_of_another(error):
            if (told := _told(store)) is not None:
                raise Told(told) from error
            # The launcher says which process it was and ends this one; only where there is none is it said here.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            time.sleep(LAUNCHER_ENDS_S)
        if _is_first(store, code):
            _tell(error)
        raise Told(code) from error


def _is_loss_of_another(error: BaseException) -> bool:
    """Whether a message to another process failed: gloo and NCCL have no type of error for it."""
    words = ("gloo", "NCCL", "Connection closed", "Connection reset")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _is_first(store: Store, code: int) -> bool:
    """Whether no other process has ended before; the others then learn the exit code."""
    try:
        first = bool(store.add("dil/ended", 1) == 1)
        if first:
            store.set("dil/exit_code", str(code))
        return first
    except RuntimeError:  # it went with the process that held it; better said twice than never
        return True


def _told(store: Store) -> int | None:
    """The exit code of the process that has ended and said why, None if there is none."""
    try:
        return int(store.get("dil/exit_code")) if store.check(["dil/exit_code"]) else None
    except RuntimeError:
        return None


def _tell(error: BaseException) -> None:
    if isinstance(error, DilError | KeyboardInterrupt) and not os.environ.get("DIL_TRACEBACK"):
        print(hidden(str(error)) or "interrupted", file=sys.stderr)
    else:
        sys.excepthook(type(error), error, error.__traceback__)
