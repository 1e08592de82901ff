"""What `dil plan` takes beside the config of the run it plans."""

from __future__ import annotations

from dataclasses import dataclass, field

from dil_cli.config import schema
from dil_cli.config.distributing import DistributedConfig, Sharding
from dil_cli.config.schema import TrainConfig
from dil_cli.errors import require, require_positive


@dataclass(kw_only=True)
class PlannedProcesses(DistributedConfig):
    """How many processes, a GPU each (one without a number), and what each of them holds."""

    kind: Sharding = Sharding.auto

    def __post_init__(self) -> None:
        self._check()


@dataclass(kw_only=True)
class PlanConfig(TrainConfig):
    """A run as `dil train` takes it, and what it is planned for.

    gpu: a device of `models/devices.py`, or cpu; null is what this machine has.
    mfu: the part of the device's peak rate that is assumed to be reached.
    pairs: to train on; null counts them, or knows them of a data set of conf/data.
    lengths: mean tokens of prompt, chosen and rejected response; null counts them where model and data are here.
    json: print numbers for programs.
    """

    gpu: str | None = None
    mfu: float = 0.4
    pairs: int | None = None
    lengths: list[int] | None = None
    json: bool = False
    distributed: PlannedProcesses = field(default_factory=PlannedProcesses)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("mfu", self.mfu, 0.4)
        require(self.mfu <= 1, "mfu", self.mfu, "be a part of the peak, 1 at most", 0.4)
        require(self.pairs is None or self.pairs > 0, "pairs", self.pairs, "be above 0 or null", 60000)
        ok = self.lengths is None or (len(self.lengths) == 3 and min(self.lengths) > 0)
        require(ok, "lengths", self.lengths, "be three numbers above 0: prompt, chosen, rejected", "[100,300,250]")


ROOTS = schema.ROOTS | {"plan": PlanConfig}
"""The whole config of each command that composes one."""
