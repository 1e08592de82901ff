"""Time from FLOPs and disk from bytes, for a whole run.

A pair's forward pass is counted in `models/flops.py`. To that and the backward pass comes what is computed twice: the
head's logits always, with checkpointing every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from dil_cli.config.distributing import SHARDED
from dil_cli.config.planning import PlanConfig
from dil_cli.models.devices import Device
from dil_cli.models.flops import Forward, backward_passes
from dil_cli.plan.lengths import Lengths
from dil_cli.plan.memory import Setup
from dil_cli.plan.trace import Traced
from dil_cli.train.batches import StepPlan
from dil_cli.train.sizes import checkpoints_at_once, states_at_once


@dataclass(frozen=True)
class Time:
    """FLOPs of each part of a run and the seconds they take; `update` is bound by memory, not by FLOPs."""

    steps: int
    pair_flops: float
    reference_flops: float
    train_flops: float
    probe_flops: float
    reference: float
    train: float
    probe: float
    update: float
    pairs_per_s: float

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.reference + self.train + self.probe + self.update


@dataclass(frozen=True)
class Disk:
    """Bytes of the run folder: of one checkpoint, of all that lie there at once, of one resume state, of all these."""

    checkpoint: float
    checkpoints: float
    state: float
    states: float


def run_time(
    config: PlanConfig, step: Traced, forward: Forward, lengths: Lengths, setup: Setup, device: Device, bf16: bool
) -> Time:
    """What the run computes, and how long that takes at `config.mfu` of the peak; communication is not counted."""
    plan = StepPlan(lengths.pairs, config.optim.batch_size, config.optim.epochs, config.seed)
    backward = backward_passes(step.trained, step.parameters)
    pair = forward.total * (1 + backward) + forward.head
    if config.model.gradient_checkpointing:
        pair += forward.body + forward.attention
    if config.loss.couples_batch:
        pair += forward.total
    number = lengths.pairs * config.optim.epochs
    once = forward.total * lengths.pairs * config.loss.needs_reference
    probed = forward.total * config.probe.pairs * (config.probe.times + 1 + config.loss.needs_reference)
    rate = device.peak(bf16) * config.mfu * setup.processes
    moved = 2 * step.trained * setup.trained_bytes + 4 * step.gradients + 2 * step.moments
    shares = setup.processes if setup.kind in SHARDED else 1
    update = plan.total * moved / shares / device.bandwidth
    train = number * pair / rate
    return Time(
        steps=plan.total,
        pair_flops=pair,
        reference_flops=once,
        train_flops=number * pair,
        probe_flops=probed,
        reference=once / rate,
        train=train,
        probe=probed / rate,
        update=update,
        pairs_per_s=number / (train + update),
    )


def disk(config: PlanConfig, step: Traced, time: Time, trained_bytes: int) -> Disk:
    """Checkpoints hold the trained weights (an adapter's alone), resume states the optimiser's moments too."""
    one = float(step.trained * trained_bytes)
    state = one + step.moments
    checkpoints = checkpoints_at_once(time.steps, config.checkpoint)
    states = states_at_once(config.checkpoint, time.steps, time.train + time.update + time.probe)
    return Disk(one, one * checkpoints, state, state * states)
