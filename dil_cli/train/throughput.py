"""How fast a step was, by process and in all: the part of its row that a clock measures.

MFU is the part of the device's peak rate that the model's own FLOPs take: those of `models/flops.py` for the pairs of
the step, forward and backward once each. What is computed twice (checkpointing, the head's logits, a coupled batch) is
not counted as work, as in PaLM (arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from dil_cli.distributed.zero3 import shape_of
from dil_cli.models.devices import gpu_here
from dil_cli.models.flops import backward_passes, forward_flops, matrix_weights
from dil_cli.train.clock import Part, StepClock
from dil_cli.train.sizes import peak_memory_gb
from dil_cli.types import TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dil_cli.dynamics.measure import Compute


@dataclass(frozen=True)
class StepWork:
    """What one process did in a step. It holds numbers alone, so that processes can send it to each other.

    pairs, tokens: its own, tokens as a model must read them (each prompt once).
    flops: of them; None where they or the device's peak are not known.
    seconds: from fetching the pairs to the end of the update.
    data, communication: of these, seconds of waiting for data and for other processes.
    memory_gb: most memory so far, 10^9 bytes.
    """

    pairs: int
    tokens: int
    flops: float | None
    seconds: float
    data: float
    communication: float
    memory_gb: float


@dataclass(frozen=True)
class Throughput:
    """A row's numbers of one process, or of all; None stands in no row.

    mfu, data_wait, communication: parts of 1.
    """

    pairs_per_s: float
    tokens_per_s: float
    mfu: float | None
    data_wait: float
    communication: float | None
    memory_gb: float


MEASURED = tuple(field.name for field in fields(Throughput))
"""Metrics that clocks and the machine's memory give: not the same in two runs that are otherwise the same."""


class Meter:
    """Knows the model's work and the device's peak.

    Args:
        model: whose parameters say which of them are trained.
        compute: how it is run.
    """

    def __init__(self, model: PreTrainedModel, compute: Compute) -> None:
        self._shape, self._device = model.config, compute.device
        self._matrices = matrix_weights(model)
        parameters = list(model.parameters())
        trained = sum(shape_of(p).numel() for p in parameters if p.requires_grad)
        self._passes = 1 + backward_passes(trained, sum(shape_of(p).numel() for p in parameters))
        gpu = gpu_here() if compute.device.type == "cuda" and _countable(model) else None
        self.peak = None if gpu is None else gpu.peak(compute.bf16)
        """FLOP/s of the device in the compute type, None where no data sheet says it."""

    def work(self, pairs: Sequence[TokenisedPair], tokens: int, clock: StepClock) -> StepWork:
        """What this process has done since the clock's step began, on `pairs` as the step read them."""
        return StepWork(
            pairs=len(pairs),
            tokens=tokens,
            flops=None if self.peak is None else self.flops(pairs),
            seconds=clock.seconds,
            data=clock.waited,
            communication=clock.spent(Part.communication),
            memory_gb=peak_memory_gb(self._device),
        )

    def flops(self, pairs: Sequence[TokenisedPair]) -> float:
        """Of the model's forward and backward pass over `pairs`."""
        return forward_flops(self._shape, self._matrices, pairs).total * len(pairs) * self._passes

    def row(self, works: Sequence[StepWork]) -> dict[str, float]:
        """The numbers of a step in which each process did one of `works`; where there are several, of each too."""
        several = len(works) > 1
        row = _plain(self._throughput(works, several))
        for rank, work in enumerate(works if several else ()):
            row |= {f"rank{rank}/{name}": value for name, value in _plain(self._throughput([work], several)).items()}
        return row

    def _throughput(self, works: Sequence[StepWork], several: bool) -> Throughput:
        seconds = max(work.seconds for work in works)
        whole = sum(work.seconds for work in works)
        flops = [work.flops for work in works if work.flops is not None]
        peak = self.peak if len(flops) == len(works) else None
        return Throughput(
            pairs_per_s=sum(work.pairs for work in works) / seconds,
            tokens_per_s=sum(work.tokens for work in works) / seconds,
            mfu=None if peak is None else sum(flops) / (peak * seconds * len(works)),
            data_wait=sum(work.data for work in works) / whole,
            communication=sum(work.communication for work in works) / whole if several else None,
            memory_gb=max(work.memory_gb for work in works),
        )


def _plain(numbers: Throughput) -> dict[str, float]:
    return {name: value for name, value in vars(numbers).items() if value is not None}


def _countable(model: PreTrainedModel) -> bool:
    """Whether `models/flops.py` counts the model: not where tokens meet some experts only, nor weights of four bits."""
    text = model.config.get_text_config()
    routed = any(getattr(text, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts"))
    return not routed and not getattr(model, "is_quantized", False)
