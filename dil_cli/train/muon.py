"""Muon where the weights lie on a CPU. M by N are a matrix's sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """torch's Muon, but in float32 where the weights lie on a CPU.

    torch orthogonalises in bfloat16 everywhere, which a CPU without bfloat16 units multiplies many times slower than
    float32 (docs/log.md). Settings, state and everything on a GPU are torch's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every matrix with a gradient."""
        if any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            return super().step(closure)  # type: ignore[no-untyped-call]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        update = orthogonal(update.float(), group["ns_coefficients"], group["ns_steps"], group["eps"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update, alpha=-group["lr"] * math.sqrt(max(1, p.shape[0] / p.shape[1])))


def orthogonal(matrix_MN: Tensor, coefficients: Sequence[float], steps: int, eps: float) -> Tensor:
    """M by N, its singular values brought near 1 (0.7 to 1.2) by a quintic Newton-Schulz iteration.

    The singular vectors stay; the values need not be 1 for Muon's purpose
    (https://kellerjordan.github.io/posts/muon). In the matrix's own precision.
    """
    a, b, c = coefficients
    wide = matrix_MN.T if matrix_MN.shape[0] > matrix_MN.shape[1] else matrix_MN
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix_MN.shape[0] > matrix_MN.shape[1] else wide
