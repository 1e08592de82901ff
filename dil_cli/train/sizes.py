"""What there is of disk and memory, and what a run needs of them. Standard library only at import."""

from __future__ import annotations

import math
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dil_cli.artifacts.states import KEPT

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dil_cli.config.schema import CheckpointConfig

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def size_text(size: float) -> str:
    """Bytes in a unit a person reads, for example 1.2 MB."""
    value, units = float(size), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if value >= 10 or units[0] == "B" else f"{value:.1f} {units[0]}"


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is or would be made."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def machine_memory() -> int | None:
    """Bytes of memory this process may have, a container's limit included; None where the system does not say."""
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    limits = [Path(name).read_text().strip() for name in CGROUP_LIMITS if Path(name).is_file()]
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])


def device_memory(device: torch.device) -> int | None:
    """Bytes of the accelerator's memory, or of the machine's."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return machine_memory()


def peak_memory_gb(device: torch.device) -> float:
    """Most memory used so far, 10^9 bytes: on the accelerator, or resident in this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights, tied ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def trained_bytes(model: nn.Module) -> int:
    """Bytes of what is trained; a checkpoint takes as much, its tokenizer aside."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def checkpoints_at_once(steps: int, config: CheckpointConfig) -> int:
    """Most checkpoints that a run of so many steps keeps: the one at its end, and those on its way."""
    number = 1 + (len(range(config.every, steps, config.every)) if config.every else 0)
    # The newest so many and the best; one more is written before another is removed.
    return number if config.keep is None else min(number, config.keep + 2)


def states_at_once(config: CheckpointConfig, steps: float = math.inf, seconds: float = math.inf) -> int:
    """Most resume states that lie there: those that are kept, while one more is written.

    Args:
        config: says how often they are saved; without `resume_minutes` only when the run is told to stop.
        steps: of the run, where they are known.
        seconds: of its training, where they are known.
    """
    minutes = config.resume_minutes
    by_clock = 0.0 if minutes is None else min(steps - 1, seconds / (60 * minutes) if minutes else math.inf)
    return int(min(KEPT + 1, max(1.0, by_clock)))
