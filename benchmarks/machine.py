"""What a measurement depends on besides the code: machine, versions, revision."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "accelerate", "trl", "liger-kernel", "flash-attn", "triton")


def describe(threads: int) -> dict[str, Any]:
    """CPU, GPU, memory, versions and git revision of this run."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": _first_line("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": cores(),
        "threads": threads,
        "memory_gb": round(int((_first_line("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 1e6),
        "load": os.getloadavg()[0],
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "revision": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
    }


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def line(machine: dict[str, Any]) -> str:
    """The same for the foot of a table."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['memory_gb']} GB, "
        f"Python {machine['python']}, {versions}; revision {machine['revision']}, {machine['when']}, "
        f"load at the start {machine['load']:.1f}"
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _first_line(path: str, key: str) -> str | None:
    if not Path(path).is_file():
        return None
    lines = Path(path).read_text().splitlines()
    return next((text.split(":", 1)[1].strip() for text in lines if text.startswith(key)), None)


def _git(*args: str) -> str:
    try:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown" if args[0] == "rev-parse" else ""
