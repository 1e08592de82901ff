"""Time from FLOPs and disk from bytes, for a whole run.

A pair has P prompt tokens and responses of C and R. Its forward pass, in FLOPs (a multiply and an add are two), over
what must be computed: the prompt once, no padding, a response's last token predicted and never read.

    body       2 W (P + C - 1 + R - 1)    W weights of the layers' matrices; every expert's, where there are experts
    attention  4 L H K                    L layers, H heads x head size, K keys summed over queries
    head       2 D V (C + R)              D hidden dimension, V vocabulary

The backward pass is twice the forward pass, once where weights are frozen. The head's logits are always computed again
in it, with checkpointing the rest too. `benchmarks/limit.py` counts the same without what is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dil_cli.config.planning import PlanConfig
from dil_cli.plan.devices import Device
from dil_cli.plan.lengths import Lengths
from dil_cli.plan.memory import SHARDED, Setup
from dil_cli.plan.trace import Traced
from dil_cli.train.batches import StepPlan
from dil_cli.types import TokenisedPair

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Forward:
    """FLOPs of one forward pass over a pair, the mean of several."""

    body: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.body + self.attention + self.head


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
    """Bytes of the run folder: of one checkpoint, of all, of one resume state, of the two that are kept."""

    checkpoint: float
    checkpoints: float
    state: float
    states: float


def forward_flops(shape: PretrainedConfig, matrices: int, pairs: Sequence[TokenisedPair]) -> Forward:
    """Mean over `pairs` (formulas at the top); `matrices` is W."""
    text = shape.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    body = attention = head = 0.0
    for pair in pairs:
        prompt = len(pair.prompt)
        responses = [len(response) for response in (pair.chosen, pair.rejected) if len(response)]
        read = [number - 1 for number in responses]
        keys = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in read)
        body += 2 * matrices * (prompt + sum(read))
        attention += 4 * text.num_hidden_layers * text.num_attention_heads * size * keys
        head += 2 * text.hidden_size * text.vocab_size * sum(responses)
    return Forward(body / len(pairs), attention / len(pairs), head / len(pairs))


def run_time(
    config: PlanConfig, step: Traced, forward: Forward, lengths: Lengths, setup: Setup, device: Device, bf16: bool
) -> Time:
    """What the run computes, and how long that takes at `config.mfu` of the peak; communication is not counted."""
    plan = StepPlan(lengths.pairs, config.optim.batch_size, config.optim.epochs, config.seed)
    backward = 1 + step.trained / step.parameters
    pair = forward.total * (1 + backward) + forward.head
    if config.model.gradient_checkpointing:
        pair += forward.body + forward.attention
    if config.loss.couples_batch:
        pair += forward.total
    number = lengths.pairs * config.optim.epochs
    once = forward.total * lengths.pairs * config.loss.needs_reference
    probed = forward.total * config.probe.pairs * (config.probe.times + 1 + config.loss.needs_reference)
    rate = device.peak(bf16) * config.mfu * setup.processes
    moved = 2 * step.trained * setup.held_bytes + 4 * step.gradients + 2 * step.moments
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


def disk(config: PlanConfig, step: Traced, steps: int, held_bytes: int) -> Disk:
    """Checkpoints hold the trained weights (an adapter's alone), resume states the optimiser's moments too."""
    one = float(step.trained * held_bytes)
    every, keep = config.checkpoint.every, config.checkpoint.keep
    number = 1 + (steps - 1) // every if every else 1
    if keep is not None:
        number = min(number, keep + 1)
    state = one + step.moments
    return Disk(one, one * number, state, 2 * state)
