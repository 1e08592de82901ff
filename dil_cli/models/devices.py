"""Accelerators by name: memory and peak rates as their makers' data sheets state them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from difflib import get_close_matches

from dil_cli.errors import DilError


@dataclass(frozen=True)
class Device:
    """One accelerator.

    memory: 10^9 bytes.
    bf16: dense bfloat16 FLOP/s of its matrix units, None where it has none; fp32: float32 FLOP/s without TF32, which
        dil does not use.
    bandwidth: bytes/s of its memory.
    source: where the numbers stand.
    driver: how its driver names it, less the maker's name; empty for what no driver names.
    """

    name: str
    memory: float
    bf16: float | None
    fp32: float
    bandwidth: float
    source: str
    driver: str = ""

    def peak(self, bf16: bool) -> float:
        """FLOP/s in the compute type."""
        return self.bf16 if bf16 and self.bf16 is not None else self.fp32


A100, H100 = "NVIDIA A100 data sheet", "NVIDIA H100 data sheet"

DEVICES = {
    device.name: device
    for device in (
        Device("v100-32", 32, None, 15.7e12, 0.90e12, "NVIDIA V100 data sheet, SXM2", "Tesla V100-SXM2-32GB"),
        Device("a10-24", 24, 125e12, 31.2e12, 0.60e12, "NVIDIA A10 data sheet", "A10"),
        Device("a100-40", 40, 312e12, 19.5e12, 1.555e12, f"{A100}, SXM", "A100-SXM4-40GB"),
        Device("a100-80", 80, 312e12, 19.5e12, 2.039e12, f"{A100}, SXM", "A100-SXM4-80GB"),
        Device("a100-pcie-40", 40, 312e12, 19.5e12, 1.555e12, f"{A100}, PCIe", "A100-PCIE-40GB"),
        Device("a100-pcie-80", 80, 312e12, 19.5e12, 1.935e12, f"{A100}, PCIe", "A100 80GB PCIe"),
        Device(
            "rtx4090-24", 24, 165.2e12, 82.6e12, 1.008e12,
            "NVIDIA Ada architecture white paper, fp32 accumulation", "GeForce RTX 4090",
        ),
        Device("l40s-48", 48, 362e12, 91.6e12, 0.864e12, "NVIDIA L40S data sheet", "L40S"),
        Device("h100-80", 80, 989e12, 67e12, 3.35e12, f"{H100}, SXM", "H100 80GB HBM3"),
        Device("h100-pcie-80", 80, 756e12, 51e12, 2.0e12, f"{H100}, PCIe", "H100 PCIe"),
        Device("h200-141", 141, 989e12, 67e12, 4.8e12, "NVIDIA H200 data sheet, SXM", "H200"),
        Device("b200-180", 180, 2250e12, 75e12, 7.7e12, "NVIDIA HGX B200 data sheet", "B200"),
    )
}  # fmt: skip
"""Of the rates a data sheet gives with sparsity, the dense half."""


def find_device(name: str | None, bf16: bool) -> Device:
    """The device of this name; without one this machine's own where the table has it, else its CPU.

    Args:
        name: of `DEVICES`, or "cpu".
        bf16: the type that the CPU's rate is measured in.

    Raises:
        DilError: for a name that is not known, with those that are.
    """
    if name is None:
        return gpu_here() or _cpu(bf16)
    if name == "cpu":
        return _cpu(bf16)
    if name not in DEVICES:
        known = ["cpu", *DEVICES]
        close = get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        raise DilError(f"no gpu '{name}'; {hint}", f"dil plan gpu={name}", f"gpu={close[0] if close else 'h100-80'}")
    return DEVICES[name]


def gpu_here() -> Device | None:
    """The device of the table that this machine has, None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return match_gpu(torch.cuda.get_device_name())


def match_gpu(name: str) -> Device | None:
    """The device that its driver calls `name`, None where the table lacks it: a variant has other rates."""
    model = name.removeprefix("NVIDIA ")
    return next((device for device in DEVICES.values() if device.driver == model), None)


def _cpu(bf16: bool) -> Device:
    """This machine: its memory, and the rate of matrix products at the threads torch has, tried for half a second."""
    import torch

    size = 1024
    a = torch.randn(size, size).to(torch.bfloat16 if bf16 else torch.float32)
    out = torch.empty_like(a)
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < 0.5:
        started = time.perf_counter()
        torch.mm(a, a, out=out)
        taken.append(time.perf_counter() - started)
    rate = 2 * size**3 / min(taken)
    source = torch.empty(2**26, dtype=torch.uint8)
    started = time.perf_counter()
    source.clone()
    bandwidth = 2 * source.nbytes / (time.perf_counter() - started)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    threads = torch.get_num_threads()
    return Device("cpu", memory, rate, rate, bandwidth, f"measured just now with {threads} thread(s)")
