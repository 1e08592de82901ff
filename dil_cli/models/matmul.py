"""Which library multiplies float32 matrices on the CPU."""

from __future__ import annotations

import torch

ROUNDING = 1e-5
"""Relative error of a float32 product of 256 terms is some 1e-7; of one that passes through bfloat16, 1e-3."""


def choose_matmul(device: torch.device) -> str:
    """Let oneDNN multiply where it does so in float32, up to 1.5 times faster; returns torch's name of the choice.

    torch reaches oneDNN by "medium", which also allows it bfloat16 inside: some CPUs do that, so it is tried. The
    choice is by accuracy and not by time, so that two runs on one machine always make the same.
    """
    if device.type == "cpu":
        torch.set_float32_matmul_precision("medium")
        if _error() > ROUNDING:
            torch.set_float32_matmul_precision("highest")
    return torch.get_float32_matmul_precision()


def _error() -> float:
    """Largest error of a product relative to its largest element."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=draw) for _ in range(2))
    exact = a.double() @ b.double()
    return float(((a @ b).double() - exact).abs().max() / exact.abs().max())
