"""A plan as an aligned table, and as plain values for JSON."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dil_cli.config.distributing import SHARDED

if TYPE_CHECKING:
    from dil_cli.plan.run import Plan


def as_text(plan: Plan) -> str:
    """What a person reads."""
    return "\n".join([_title(plan), "", *_memory(plan), "", *_time(plan), "", *_disk(plan)])


def as_dict(plan: Plan) -> dict[str, Any]:
    """What a program reads: bytes, FLOPs and seconds."""
    config, setup = plan.config, plan.setup
    return {
        "computed": True,
        "name": config.name,
        "model": config.model.path,
        "parameters": plan.step.parameters,
        "trained": plan.step.trained,
        "device": dataclasses.asdict(plan.device),
        "processes": setup.processes,
        "kind": setup.kind.value,
        "peft": config.peft.kind.value,
        "bf16": plan.bf16,
        "row_tokens": plan.step.tokens,
        "memory": {**dataclasses.asdict(plan.memory), "total": plan.memory.total},
        "fits": plan.fits,
        "largest_token_budget": plan.budget,
        "changes": [dataclasses.asdict(change) for change in plan.changes],
        "pairs": plan.lengths.pairs,
        "tokens_per_pair": plan.lengths.tokens,
        "lengths": plan.lengths.source,
        "mfu": config.mfu,
        "time": {**dataclasses.asdict(plan.time), "seconds": plan.time.seconds},
        "disk": dataclasses.asdict(plan.disk),
    }


def _title(plan: Plan) -> str:
    setup, step = plan.setup, plan.step
    where = f"{setup.processes} x {plan.device.name} ({setup.kind.value})" if setup.processes > 1 else plan.device.name
    held = "fp32 weights" if setup.held_bytes == 4 else "bf16 weights"
    held = f"bf16 over {held}" if plan.bf16 and setup.held_bytes == 4 else held
    rows = "checkpointed, " if plan.config.model.gradient_checkpointing else ""
    trained = f", {step.trained:,} of them trained" if step.trained < step.parameters else ""
    return (
        f"{plan.config.name} on {where}: computed, nothing was run\n"
        f"{plan.config.model.path}: {step.parameters:,} parameters{trained}; "
        f"rows of {step.tokens:,} tokens, {rows}{held}"
    )


def _memory(plan: Plan) -> list[str]:
    held, setup = plan.memory, plan.setup
    part = f"a part of {setup.processes}" if setup.kind in SHARDED and setup.processes > 1 else ""
    four = "in four bits" if plan.config.peft.quantised else ""
    rows = [
        ("weights", held.weights, part or four),
        ("gradients", held.gradients, part or ("and the buckets they are exchanged in" if setup.kind == "ddp" else "")),
        ("optimiser", held.optimiser, part or plan.config.optim.kind.value),
        ("weights in bf16", held.copies, "autocast's copies, kept until the forward pass ends"),
        ("gathered weights", held.gathered, "all outside the layers, two layers, their gradient"),
        ("activations", held.activations, "kept for the backward pass, and passing"),
        ("head", held.head, "tiles of logits, the gradient of the head's weight"),
        ("outside tensors", held.overhead, "assumed: context, libraries, rounding"),
    ]
    said = "fits" if plan.fits else "does NOT fit"
    lines = ["memory of one process at its peak, GB (10^9 bytes)"]
    lines += [_row(name, value / 1e9, note) for name, value, note in rows if value]
    lines.append(_row("total", held.total / 1e9, f"of {plan.device.memory:.0f}: {said}"))
    if plan.fits and plan.budget is not None and plan.budget > plan.config.optim.token_budget:
        lines.append(f"  there is room up to optim.token_budget={plan.budget}")
    for change in plan.changes:
        verdict = "fits" if change.total <= 1e9 * plan.device.memory else "not enough by itself"
        lines.append(f"  {change.words}: {change.total / 1e9:.1f} GB, {verdict}")
    return lines


def _time(plan: Plan) -> list[str]:
    time, device = plan.time, plan.device
    hours = [
        ("reference pass", time.reference, "once, then cached"),
        ("training", time.train, f"{time.pair_flops / 1e12:.3g} TFLOP a pair, forward, backward and what they repeat"),
        ("updates", time.update, f"{time.steps:,} steps, bound by {device.bandwidth / 1e9:,.0f} GB/s"),
        ("measurements", time.probe, f"{plan.config.probe.times + 1} times {plan.config.probe.pairs} held-out pairs"),
    ]
    epochs = plan.config.optim.epochs
    lines = [f"time, hours, at {plan.config.mfu:.0%} of the peak (assumed: mfu=), without communication"]
    lines += [_row(name, seconds / 3600, note, digits=2) for name, seconds, note in hours if seconds]
    total = time.seconds / 3600
    gpus = f"{total * plan.setup.processes:.1f} GPU-hours, " if device.name != "cpu" else ""
    lines.append(_row("total", total, f"{gpus}{time.pairs_per_s:.3g} pairs/s while training", digits=2))
    pairs = f"{plan.lengths.pairs:,} pairs x {epochs:g} epochs, {plan.lengths.tokens:.0f} tokens each"
    lines.append(f"  {pairs}: {plan.lengths.source}")
    lines.append(
        f"  peak {device.peak(plan.bf16) / 1e12:.3g} TFLOP/s {'bf16' if plan.bf16 else 'fp32'}: {device.source}"
    )
    return lines


def _disk(plan: Plan) -> list[str]:
    room = plan.disk
    number, states = round(room.checkpoints / room.checkpoint), round(room.states / room.state)
    return [
        "disk, GB",
        _row("checkpoints", room.checkpoints / 1e9, f"{number} of {room.checkpoint / 1e9:.3g}"),
        _row(
            "resume states",
            room.states / 1e9,
            f"{states} of {room.state / 1e9:.3g} while it runs, one of them in writing",
        ),
    ]


def _row(name: str, value: float, note: str, digits: int = 1) -> str:
    shown = f"{value:.{digits}f}" if value >= 10**-digits or not value else f"{value:.3g}"
    return f"  {name.ljust(16)} {shown.rjust(9)}   {note}".rstrip()
