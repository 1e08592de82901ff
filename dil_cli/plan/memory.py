"""What one process holds: a step's bytes (`trace.py`) divided over processes, and what the device adds."""

from __future__ import annotations

from dataclasses import dataclass

from dil_cli.config.adapting import PeftConfig
from dil_cli.config.distributing import SHARDED, Sharding
from dil_cli.plan.trace import Traced

OVERHEAD = {"gpu": 1.5e9, "cpu": 0.85e9}
"""Bytes outside tensors, assumed. gpu: CUDA context, kernels and workspaces, and the allocator's rounding; not measured
here. cpu: Python and its libraries, and what malloc and oneDNN keep, in a run of the tiny model without W&B."""

FOUR_BITS = 4.127 / 8
"""Bytes a weight in four bits with its doubly quantised scale (QLoRA, arXiv 2305.14314: 0.127 bits a parameter)."""


@dataclass(frozen=True)
class Setup:
    """What the arithmetic needs to know of a run's processes: nothing of how they are started.

    compute_bytes: of a weight in the forward pass, 2 under bf16.
    held_bytes: of a weight where it is kept.
    """

    processes: int
    kind: Sharding
    compute_bytes: int
    held_bytes: int
    gpu: bool
    adapter: PeftConfig | None = None

    @property
    def trained_bytes(self) -> int:
        """Of a number that is trained: an adapter's are float32 beside weights of any type."""
        return self.held_bytes if self.adapter is None else 4


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at its peak, by what they are for."""

    weights: float
    gradients: float
    optimiser: float
    copies: float
    gathered: float
    activations: float
    head: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(vars(self).values()))


def memory(step: Traced, setup: Setup) -> Memory:
    """The bytes of each of `setup.processes` processes.

    ddp holds everything and as many bytes again as the gradients have, the buckets that are exchanged. fsdp2 and zero3
    hold a part, and while they compute, in the compute type, all weights outside the layers and two layers (one in use,
    the next on its way), with the float32 gradient of the weights outside and of one layer. That is the libraries'
    documented behaviour, not measured here.
    """
    weights, copies = float(step.weights), float(step.copies)
    if setup.adapter is not None and setup.adapter.quantised:
        frozen = step.matrices - step.trained
        weights += frozen * (FOUR_BITS - setup.held_bytes)
        copies += setup.compute_bytes * step.layer  # one layer's weights, no longer in four bits
    overhead = OVERHEAD["gpu" if setup.gpu else "cpu"]
    buckets = gathered = 0.0
    part = 1
    if setup.kind is Sharding.ddp and setup.processes > 1:
        buckets = float(step.gradients)
    elif setup.kind in SHARDED:
        part = setup.processes
        gathered = setup.compute_bytes * (step.outside + 2 * step.layer)
        gathered += 4 * (step.outside + step.layer) * (step.trained == step.parameters)
        copies = 0.0
    return Memory(
        weights=weights / part,
        gradients=step.gradients / part + buckets,
        optimiser=step.moments / part,
        copies=copies,
        gathered=gathered,
        activations=step.activations,
        head=step.head,
        overhead=overhead,
    )
