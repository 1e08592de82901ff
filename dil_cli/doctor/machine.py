"""Devices, threads, precision and the library that multiplies."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator

import torch

from dil_cli.config.schema import Precision, TrainConfig
from dil_cli.doctor.finding import Finding, ok, warning
from dil_cli.models.matmul import choose_matmul
from dil_cli.train.ready import pick_device, use_bf16
from dil_cli.train.sizes import device_memory, size_text

SIDE = 768
"""Of the square matrices that are timed: large enough for all cores, and a few milliseconds."""


def devices(config: TrainConfig) -> Iterator[Finding]:
    """The device a run takes, and accelerators that are there and cannot be used."""
    device = pick_device(config.device)
    memory = device_memory(device)
    text = f"{device.type} ({_describe(device)}{'' if memory is None else f', {size_text(memory)} of memory'})"
    idle = shutil.which("nvidia-smi") is not None and not torch.cuda.is_available()
    facts = {"device": device.type, "memory_bytes": memory, "cuda": torch.version.cuda, "torch": str(torch.__version__)}
    if idle and torch.version.cuda is None:
        yield warning(
            "device", f"{text}; an NVIDIA driver is here, and this torch is built without CUDA",
            "pip install --force-reinstall torch, from the index that PyTorch names for your CUDA", **facts,
        )  # fmt: skip
    elif idle:
        yield warning(
            "device", f"{text}; an NVIDIA driver is here, and torch (CUDA {torch.version.cuda}) finds no GPU",
            "see what nvidia-smi says; CUDA_VISIBLE_DEVICES may hide it, or the driver is too old for this torch",
            **facts,
        )  # fmt: skip
    else:
        yield ok("device", text, **facts)


def threads(config: TrainConfig) -> Iterator[Finding]:
    """Cores that torch leaves idle, on a CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    used = torch.get_num_threads()
    facts = {"cores": cores, "threads": used, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
    text = f"torch uses {used} of {cores} cores"
    if pick_device(config.device).type != "cpu" or used == cores:
        yield ok("threads", text, **facts)
        return
    why = f" (OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']})" if "OMP_NUM_THREADS" in os.environ else ""
    change = "unset OMP_NUM_THREADS" if why else f"OMP_NUM_THREADS={cores}"
    slower = "training is slower" if used < cores else "they get into each other's way"
    yield warning("threads", f"{text}{why}: {slower}", f"{change}, unless several runs share the machine", **facts)


def precision(config: TrainConfig) -> Iterator[Finding]:
    """Compute type of the forward and backward pass."""
    device = pick_device(config.device)
    bf16 = use_bf16(config.precision, device)
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    facts = {"bf16": bf16, "native_bf16": native, "weights": config.model.dtype.value}
    text = f"{'bf16 autocast' if bf16 else 'fp32'} over {config.model.dtype.value} weights"
    if config.precision is Precision.bf16 and not native:
        yield warning(
            "precision", f"{text}, as precision=bf16 says; dil does not know {device.type} here to be fast at it",
            "precision=auto takes bf16 where the device multiplies it natively", **facts,
        )  # fmt: skip
    else:
        why = "" if bf16 or config.precision is Precision.fp32 else "; bf16 is taken on GPUs that multiply it natively"
        yield ok("precision", text + why, **facts)


def products(config: TrainConfig) -> Iterator[Finding]:
    """Which library multiplies float32 matrices, tried, and how fast."""
    device = pick_device(config.device)
    exact = choose_matmul(device, SIDE) == "medium"
    chosen = choose_matmul(device, SIDE)
    speed = _gflops(device)
    text = f"{speed:,.0f} GFLOP/s in float32 products of {SIDE} x {SIDE}"
    facts = {"gflops": round(speed, 1), "precision": chosen, "mkldnn": torch._C._has_mkldnn}
    if device.type != "cpu":
        yield ok("products", f"{text}; TF32 is {'off' if chosen == 'highest' else 'on'}", **facts)
    elif exact:
        yield ok("products", f"{text} by oneDNN, tried: exact to float32; models narrower than 128 do without", **facts)
    else:
        reason = "it rounds to bfloat16 on this CPU" if facts["mkldnn"] else "this torch is built without it"
        yield ok("products", f"{text}, not by oneDNN: {reason}", **facts)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        others = torch.cuda.device_count() - 1
        more = f", and {others} more that one run does not use" if others else ""
        return f"{torch.cuda.get_device_name(device)}, capability {major}.{minor}, CUDA {torch.version.cuda}{more}"
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else "Apple GPU"


def _gflops(device: torch.device) -> float:
    a = torch.ones(SIDE, SIDE, device=device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for an accelerator too
        best = min(best, time.perf_counter() - started)
    return 2 * SIDE**3 / best / 1e9
