"""Optimisers and their schedule, as pure functions of the config and the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from dil_cli.config.schema import OptimConfig, Optimiser, Schedule
from dil_cli.distributed.tensors import clip
from dil_cli.errors import DilError
from dil_cli.train.muon import Muon

SMALLEST_8BIT = 4096
"""Parameters of fewer numbers keep float32 moments."""
BLOCK_8BIT = 256
"""Numbers that share a scale."""


def build_optimisers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW over all parameters, or Muon over the hidden matrices and AdamW over the rest.

    Weight decay acts on matrices, not on biases and norms. Each group keeps its peak rate, its own times
    `lr_factor`, in `peak_lr`.

    Raises:
        DilError: when the optimiser is one of an extra that is not installed.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = _hidden_matrices(model) if config.kind is Optimiser.muon else set()
    rest = [p for name, p in trained.items() if name not in hidden]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    optimisers: list[torch.optim.Optimizer]
    if config.kind is Optimiser.adamw_8bit:
        check_available(config)
        from bitsandbytes.optim import AdamW8bit

        optimisers = [AdamW8bit(groups, min_8bit_size=SMALLEST_8BIT, **settings)]
    else:
        optimisers = [torch.optim.AdamW(groups, fused=True, **settings)]
    if hidden:
        assert config.muon_lr is not None
        assert config.muon_momentum is not None
        optimisers.append(
            Muon(
                [p for name, p in trained.items() if name in hidden],
                lr=config.muon_lr, momentum=config.muon_momentum, weight_decay=config.weight_decay,
            )
        )  # fmt: skip
    for group in _groups(optimisers):
        group["peak_lr"] = group["lr"] * config.lr_factor
    return optimisers


def check_available(config: OptimConfig) -> None:
    """What the optimiser is made of must be installed.

    Raises:
        DilError: when it is not.
    """
    if config.kind is Optimiser.adamw_8bit and find_spec("bitsandbytes") is None:
        raise DilError(
            "moments in 8 bits need bitsandbytes, which is not installed", f"optim.kind={config.kind.value}",
            "pip install 'dil[quant]', or optim=adamw",
        )  # fmt: skip


def moment_bytes_8bit(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of what `AdamW8bit` keeps for them: two codes a number and two float32 scales a block, the tables aside."""
    sizes = [p.numel() for p in parameters]
    return 2 * sum(n + 4 * math.ceil(n / BLOCK_8BIT) if n >= SMALLEST_8BIT else 4 * n for n in sizes)


def lr_factor(step: int, total: int, config: OptimConfig) -> float:
    """The part of the peak learning rate that step `step` of `total` (counted from 0) takes.

    Linear warm-up over `ceil(warmup * total)` steps, the first at 1/warm-up, then the schedule, which
    reaches 0 one step after the last.
    """
    warm = math.ceil(config.warmup * total)
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, total - warm)
    if config.schedule is Schedule.cosine:
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if config.schedule is Schedule.linear else 1.0


def set_lr(optimisers: Sequence[torch.optim.Optimizer], factor: float) -> float:
    """Scale every group's peak rate; returns the first group's rate."""
    for group in _groups(optimisers):
        group["lr"] = group["peak_lr"] * factor
    return float(optimisers[0].param_groups[0]["lr"])


def clip_gradient(model: nn.Module, limit: float | None) -> float:
    """Scale the gradient down to a 2-norm of `limit`; returns its norm before, which may be non-finite."""
    return float(clip(model.parameters(), math.inf if limit is None else limit))


def clear_gradient(optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """Of all that they train."""
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)


def _groups(optimisers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    return [group for optimiser in optimisers for group in optimiser.param_groups]


def _hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the 2-D weights that are neither embeddings nor the vocabulary head."""
    ends = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    ends |= {id(head.weight)} if head is not None else set()
    return {name for name, p in model.named_parameters() if p.ndim == 2 and id(p) not in ends}
