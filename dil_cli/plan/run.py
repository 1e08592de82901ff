"""`dil plan`: from a config to memory, time, disk, and what to change where it does not fit."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dil_cli.config.adapting import AdapterKind, PeftConfig
from dil_cli.config.distributing import Sharding
from dil_cli.config.planning import PlanConfig
from dil_cli.config.schema import ModelConfig, Precision, WeightType
from dil_cli.errors import DilError
from dil_cli.models.devices import Device, find_device
from dil_cli.models.flops import forward_flops
from dil_cli.plan.geometries import geometry
from dil_cli.plan.lengths import Lengths, lengths_of
from dil_cli.plan.memory import Memory, Setup, memory
from dil_cli.plan.show import as_dict, as_text
from dil_cli.plan.trace import Traced, trace_step
from dil_cli.plan.work import Disk, Time, disk, run_time
from dil_cli.train.ready import stay_offline_if_local

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROUND = 256
"""Token budgets are suggested in multiples of it."""
TRIES = 3
MOST_PROCESSES = 512


def run(config: PlanConfig, folder: Path | None) -> int:
    """Plan and print.

    Raises:
        DilError: for a device, model or data set that cannot be planned with.
    """
    if folder is not None:
        raise DilError("dil plan writes no folder", f"hydra.run.dir={folder}", "leave hydra.run.dir out")
    plan = make_plan(config)
    print(json.dumps(as_dict(plan), indent=1) if config.json else as_text(plan))
    return 0


@dataclass(frozen=True)
class Change:
    """What to add to the command, and what a process then holds."""

    words: str
    total: float


@dataclass(frozen=True)
class Plan:
    """A config, what it was planned for, and the answers."""

    config: PlanConfig
    device: Device
    setup: Setup
    bf16: bool
    step: Traced
    memory: Memory
    lengths: Lengths
    time: Time
    disk: Disk
    budget: int | None
    changes: tuple[Change, ...]

    @property
    def fits(self) -> bool:
        """Whether a process's peak is below the device's memory."""
        return self.memory.total <= 1e9 * self.device.memory


def make_plan(config: PlanConfig) -> Plan:
    """Count and compute; nothing is trained and no weights are read.

    Raises:
        DilError: as `run`.
    """
    stay_offline_if_local(config.model.path, config.data)
    device = find_device(config.gpu, config.precision is Precision.bf16)
    bf16 = _use_bf16(config, device)
    lengths = lengths_of(config)
    planner = Planner(config, device, bf16, geometry(config.model), lengths)
    step, setup = planner.step, planner.setup
    held = memory(step, setup)
    forward = forward_flops(planner.shape, step.matrices, lengths.sample)
    time = run_time(config, step, forward, lengths, setup, device, bf16)
    fits = held.total <= planner.limit
    return Plan(
        config, device, setup, bf16, step, held, lengths, time,
        disk(config, step, time, setup.trained_bytes),
        budget=planner.largest_budget,
        changes=() if fits else tuple(planner.changes()),
    )  # fmt: skip


@dataclass(frozen=True)
class Planner:
    """One config on one device, and the same with something changed."""

    config: PlanConfig
    device: Device
    bf16: bool
    shape: PretrainedConfig
    lengths: Lengths

    @property
    def limit(self) -> float:
        """Bytes of the device."""
        return 1e9 * self.device.memory

    @property
    def held_bytes(self) -> int:
        """Of a weight; what lies beside weights in four bits is held in bf16."""
        quantised = self.adapter is not None and self.adapter.quantised
        return 2 if quantised or self.config.model.dtype is WeightType.bf16 else 4

    @cached_property
    def adapter(self) -> PeftConfig | None:
        """The one that the config asks for."""
        return self.config.peft if self.config.peft.trains_adapter else None

    @cached_property
    def step(self) -> Traced:
        """What the config's own step holds."""
        return self.trace(self.config.optim.token_budget)

    @property
    def processes(self) -> int:
        """A GPU each."""
        return self.config.distributed.processes or 1

    @cached_property
    def setup(self) -> Setup:
        """The processes, sharded if they must be."""
        kind, number = self.config.distributed.kind, self.processes
        if kind is Sharding.auto:
            kind = Sharding.none if number == 1 else Sharding.ddp
            if number > 1 and memory(self.step, self.setup_of(kind, number)).total > self.limit:
                kind = Sharding.fsdp2
        return self.setup_of(kind, number)

    def setup_of(self, kind: Sharding, processes: int) -> Setup:
        """These processes, all else as it is."""
        gpu = self.device.name != "cpu"
        return Setup(processes, kind, 2 if self.bf16 else 4, self.held_bytes, gpu, self.adapter)

    def trace(self, budget: int, model: ModelConfig | None = None, adapter: PeftConfig | None = None) -> Traced:
        """A step whose rows have `budget` tokens, or as many as there are."""
        model, adapter = model or self.config.model, adapter or self.adapter
        if model.attention != "packed":
            raise DilError(
                "only packed rows are planned for", f"model.attention={model.attention}", "model.attention=packed"
            )
        if adapter is not None and adapter.quantised:
            model = dataclasses.replace(model, dtype=WeightType.bf16)  # what four bits are multiplied in
        return trace_step(
            self.shape, model, self.config.optim,
            self.lengths.row(max(self.lengths.longest, min(budget, self.step_tokens))),
            bf16=self.bf16, gpu=self.device.name != "cpu", several=self.step_tokens > budget, adapter=adapter,
        )  # fmt: skip

    @property
    def step_tokens(self) -> int:
        """Tokens that one process reads in an optimiser step."""
        pairs = math.ceil(self.config.optim.batch_size / self.processes)
        return round(pairs * self.lengths.tokens)

    @cached_property
    def largest_budget(self) -> int | None:
        """The largest token budget that fits, that of a whole step at most; None where not even one pair does.

        A peak grows with the tokens as a bent line does, each piece steeper than the last. So a line through two steps
        may promise too much, and what it promises is tried.
        """
        whole = max(self.lengths.longest, self.step_tokens)
        low, high = self.trace(self.config.optim.token_budget // 2), self.step
        for _ in range(TRIES):
            if low.tokens == high.tokens:  # all of a step, or one pair
                break
            there, before = (memory(step, self.setup).total for step in (high, low))
            slope = (there - before) / (high.tokens - low.tokens)
            # A row with all of a step has less beside it than one of several, which find a gradient there.
            most = high.tokens + (self.limit - there) / slope if slope > 0 else math.inf
            budget = int(min(most, whole + ROUND) // ROUND * ROUND)
            if budget < self.lengths.longest:
                return None
            tried = self.trace(budget)
            if memory(tried, self.setup).total <= self.limit:
                return budget
            low, high = sorted((low, high, tried), key=lambda step: step.tokens)[:2]
        return self.config.optim.token_budget if memory(self.step, self.setup).total <= self.limit else None

    def changes(self) -> Iterator[Change]:
        """What would make it fit, each by itself: the budget, checkpointing, more processes, adapters."""
        budget, model = self.config.optim.token_budget, self.config.model
        most = self.largest_budget
        if most is not None and most < budget:
            yield Change(f"optim.token_budget={most}", self.limit)
        if not model.gradient_checkpointing:
            step = self.trace(budget, dataclasses.replace(model, gradient_checkpointing=True))
            yield Change("model.gradient_checkpointing=true", memory(step, self.setup).total)
        processes = 2 * self.processes
        while processes <= MOST_PROCESSES:
            total = memory(self.step, self.setup_of(Sharding.fsdp2, processes)).total
            if total <= self.limit:
                yield Change(f"distributed=fsdp2 distributed.processes={processes}", total)
                break
            processes *= 2
        if self.adapter is None:
            bf16 = dataclasses.replace(model, dtype=WeightType.bf16)
            for kind, more in ((AdapterKind.lora, " model.dtype=bf16"), (AdapterKind.qlora, "")):
                adapter = PeftConfig(kind=kind, r=16, alpha=16, dropout=0.0, lr_factor=1.0)  # the size of conf/peft's
                setup = dataclasses.replace(self.setup, adapter=adapter, held_bytes=2)
                yield Change(f"peft={kind.value}{more}", memory(self.trace(budget, bf16, adapter), setup).total)


def _use_bf16(config: PlanConfig, device: Device) -> bool:
    """As `train.ready.use_bf16`, for a device that is not here."""
    if config.model.dtype is WeightType.bf16:
        return True
    if config.precision is Precision.auto:
        return device.name != "cpu" and device.bf16 is not None
    return config.precision is Precision.bf16
