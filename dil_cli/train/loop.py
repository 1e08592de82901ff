"""The training loop, read from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from dil_cli.config.schema import OptimConfig
from dil_cli.data.packing import packed_tokens
from dil_cli.dynamics.measure import Compute, share_of
from dil_cli.dynamics.statistics import pair_statistics
from dil_cli.losses import PreferenceLoss
from dil_cli.train.batches import StepPlan
from dil_cli.train.clock import Part, StepClock
from dil_cli.train.optimiser import lr_factor, set_lr
from dil_cli.train.step import Batch, Gradient, accumulate_gradient, apply_gradient, as_read
from dil_cli.train.throughput import Meter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train(
    model: PreTrainedModel,
    loss: PreferenceLoss,
    optimisers: Sequence[torch.optim.Optimizer],
    pairs: Batch,
    plan: StepPlan,
    optim: OptimConfig,
    compute: Compute,
    after_step: Callable[[int, dict[str, Any]], None],
    done: int = 0,
) -> None:
    """Take the steps of `plan` over `pairs` that are not `done`; `after_step(step, row)` hears of each, from 1.

    Raises:
        RunFailed: when a loss or a gradient is not finite; the weights are those before that step.
    """

    def accumulate(batch: Batch) -> Gradient:
        return accumulate_gradient(model, loss, batch, compute)

    clock, meter = StepClock(), Meter(model, compute)
    model.train()
    for step in range(done, plan.total):
        clock.begin()
        batch = pairs.part(plan.pairs_at(step))
        lr = set_lr(optimisers, lr_factor(step, plan.total, optim))
        with clock.part(Part.compute):
            gradient = accumulate_gradient(model, loss, batch, compute, clock)
        with clock.part(Part.update):
            norm = apply_gradient(model, optimisers, batch, optim.clip, rescore=accumulate)
        read = as_read(batch.pairs, loss)
        own = [read[i] for group in share_of(read, compute).own for i in group]
        work = meter.work(own, sum(map(packed_tokens, own)), clock)
        row = {
            "step": step + 1,
            "epoch": (step + 1) / plan.steps_per_epoch,
            "lr": lr,
            "grad_norm": norm,
            **step_statistics(gradient, loss),
            **meter.row(compute.world.gathered(work)),
        }
        after_step(step + 1, row)


def step_statistics(gradient: Gradient, loss: PreferenceLoss) -> dict[str, float]:
    """Means over the pairs of one step, under the names of the metrics."""
    row = {
        "loss": float(gradient.loss_B.double().mean()),
        **pair_statistics(gradient.logps, loss.reduction.value),
    }
    row["weight/chosen"] = float(gradient.weight_chosen_B.double().mean())
    if loss.needs_rejected:
        row["weight/rejected"] = float(gradient.weight_rejected_B.double().mean())
    row["guard/frac"] = float(gradient.guarded_B.double().mean())
    return row
