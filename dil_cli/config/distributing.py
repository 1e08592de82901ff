"""Over how many processes a run is spread, and what each of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dil_cli.errors import require


class Sharding(str, Enum):
    """What each process holds: all (none, ddp) or its part; auto, of `dil plan` alone, is the first that fits."""

    auto = "auto"
    none = "none"
    ddp = "ddp"
    fsdp2 = "fsdp2"
    zero3 = "zero3"


SHARDED = (Sharding.fsdp2, Sharding.zero3)
"""Those that hold a part."""


@dataclass(kw_only=True)
class DistributedConfig:
    """The processes of a run. None of this changes its numbers beyond rounding, nor its name.

    processes: in all; null takes the launcher's number (torchrun, accelerate, Slurm), or one for each GPU here.
    offload: weights and optimiser state wait in the machine's memory, the GPU has a layer at a time (fsdp2, zero3).
    """

    kind: Sharding = Sharding.none
    processes: int | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        require(self.kind is not Sharding.auto, "distributed.kind", "auto", "be ddp, fsdp2, zero3 or none; auto is of "
                "dil plan", "fsdp2")  # fmt: skip
        self._check()

    def _check(self) -> None:
        """What training and planning ask alike."""
        processes = self.processes
        require(processes is None or processes > 0, "distributed.processes", processes, "be above 0", 8)
        alone = self.kind is Sharding.none and (processes or 1) > 1
        require(not alone, "distributed.kind", self.kind.value, "be ddp, fsdp2 or zero3 for several processes", "fsdp2")
        fits = not self.offload or self.kind in SHARDED
        require(fits, "distributed.offload", "true", "stay false unless distributed=fsdp2 or zero3", "false")
