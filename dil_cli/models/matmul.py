"""Which library multiplies float32 matrices on the CPU.

torch reaches oneDNN by the precision "medium", which also allows bfloat16 inside: some CPUs do that, so it is tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ROUNDING = 1e-5
"""Relative error of a float32 product of 256 terms is some 1e-7; of one that passes through bfloat16, 1e-3."""

SMALLEST_WIDTH = 128
"""oneDNN takes 0.6 ms to prepare for a shape it has not seen, more than it gains on narrow matrices."""


def choose_matmul(device: torch.device, width: int) -> str:
    """Let oneDNN multiply where it does so in float32, up to 1.5 times faster; returns torch's name of the choice.

    The choice is by accuracy and size and not by time, so that two runs on one machine always make the same.

    Args:
        device: of the model; oneDNN serves the CPU.
        width: the model's hidden dimension.
    """
    if device.type == "cpu":
        torch.set_float32_matmul_precision("medium")
        if width < SMALLEST_WIDTH or _error() > ROUNDING:
            torch.set_float32_matmul_precision("highest")
    return torch.get_float32_matmul_precision()


def shape_step(device: torch.device) -> int:
    """What the number of rows of a product should be a multiple of.

    oneDNN keeps what it has prepared for 1,024 shapes. Rows of any length have more, and preparing them again and again
    is a sixth of a step's time.
    """
    return 32 if device.type == "cpu" and torch.get_float32_matmul_precision() == "medium" else 1


@contextmanager
def small_products(device: torch.device) -> Iterator[None]:
    """Without oneDNN while inside: for many small products, hardly two of them of one shape."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _error() -> float:
    """Largest error of a product relative to its largest element."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=draw) for _ in range(2))
    exact = a.double() @ b.double()
    return float(((a @ b).double() - exact).abs().max() / exact.abs().max())
