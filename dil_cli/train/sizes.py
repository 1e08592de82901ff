"""What there is of disk and memory, and what a run needs of them. Standard library only at import."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

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


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights, tied ones once; a checkpoint takes as much, its tokenizer aside."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
