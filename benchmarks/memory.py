"""Peak memory of what runs in this process: resident set on a CPU, allocated bytes on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """From its creation on: how far above the level of that moment the memory went."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return
        # Blocks that malloc keeps after a reference pass would otherwise hide the same amount of growth.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.resets = _reset_peak()
        self.start = _status("VmRSS")

    def growth_gb(self) -> float:
        """Peak so far minus the start, in 10^9 bytes."""
        return (self.peak_bytes() - self.start) / 1e9

    def peak_bytes(self) -> int:
        """Peak so far; without a kernel that can reset it, the process's highest ever."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return _status("VmHWM") if self.resets else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reset_peak() -> bool:
    try:
        CLEAR.write_text("5")  # man 5 proc: resets the peak resident set size
    except OSError:
        return False
    return True


def _status(key: str) -> int:
    if not STATUS.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
