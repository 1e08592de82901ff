"""One GPU, Mistral-7B's true geometry, random weights: memory beside `dil plan`, and MFU.

    python -m benchmarks.geometry_7b --way lora                  # full_bf16, full_8bit (needs dil[quant]), lora
    python -m benchmarks.geometry_7b --small --way full_bf16     # a shrunk one on a CPU, to test the script

It takes steps by `train/loop.py` as a run does: packed rows, checkpointing, DPO. Lengths are those of real long pairs
(`lengths/alpaca_eval_prefs.json`). MFU is the run's own, of the data sheet's dense peak. One way a process, since
memory that was reserved before would count.

Not run yet: no GPU was lent. It imports nothing of dil that needs hydra-core, omegaconf, datasets or wandb.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine, pairs
from benchmarks.memory import PeakMemory
from dil_cli.config.adapting import AdapterKind, PeftConfig
from dil_cli.config.distributing import Sharding
from dil_cli.config.schema import ModelConfig, OptimConfig, Optimiser, Schedule, WeightType
from dil_cli.dynamics.layout import choose_layout
from dil_cli.dynamics.measure import Compute
from dil_cli.losses import LOSSES
from dil_cli.models.adapters import add_adapter
from dil_cli.plan.geometries import MISTRAL_7B, empty_model
from dil_cli.plan.lengths import Lengths
from dil_cli.plan.memory import Setup, memory
from dil_cli.plan.trace import trace_step
from dil_cli.train.batches import StepPlan
from dil_cli.train.loop import train
from dil_cli.train.optimiser import build_optimisers
from dil_cli.train.step import Batch
from dil_cli.types import TokenisedPair

OUT = Path("outputs/bench")
SHRUNK = {
    "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 448, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 1,
}  # fmt: skip
"""Mistral-7B's proportions at a size a CPU tests in seconds."""


@dataclass(frozen=True)
class Way:
    """How a model that takes 16 bytes a parameter in float32 comes onto one GPU, its weights in bfloat16."""

    optimiser: Optimiser = Optimiser.adamw
    adapter: PeftConfig | None = None


WAYS = {
    "full_bf16": Way(),
    "full_8bit": Way(optimiser=Optimiser.adamw_8bit),
    "lora": Way(adapter=PeftConfig(kind=AdapterKind.lora, r=16, alpha=32, dropout=0.0, lr_factor=10.0)),
}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Plan, train and compare; writes `geometry_7b_WAY.json`. Without a GPU or `--small` it only plans."""
    from transformers import AutoConfig

    device = torch.device("cpu" if args.small else "cuda")
    shape = AutoConfig.for_model(**(MISTRAL_7B | (SHRUNK if args.small else {})))
    way, some = WAYS[args.way], some_pairs(args, shape.vocab_size)
    model = ModelConfig(
        path="mistralai/Mistral-7B-v0.1", dtype=WeightType.bf16, gradient_checkpointing=True, lr=5e-7,
        batch_size=args.batch, max_length=args.max_length, max_prompt_length=args.max_length // 2,
        token_budget=args.token_budget,
    )  # fmt: skip
    optim = OptimConfig(
        kind=way.optimiser, lr=model.lr, batch_size=args.batch, token_budget=args.token_budget,
        schedule=Schedule.constant, warmup=0.0,
    )  # fmt: skip
    report: dict[str, Any] = {
        "benchmark": "geometry_7b", "way": args.way, "small": args.small, "machine": machine.describe(args.threads),
        "plan": planned(args, shape, model, optim, way, some), "rows": [],
    }  # fmt: skip
    if args.small or torch.cuda.is_available():
        torch.set_num_threads(args.threads)
        report |= measured(args, shape, model, optim, way, some, device)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"geometry_7b_{args.way}.json").write_text(json.dumps(report, indent=1))
    return report


def some_pairs(args: argparse.Namespace, vocabulary: int) -> list[TokenisedPair]:
    """As many as the steps take, of real lengths and random ids."""
    found = pairs.from_lengths(vocabulary, args.max_length, number=args.batch * args.steps)
    return [
        TokenisedPair(i, *(np.asarray(ids, dtype=np.int32) for ids in (pair.prompt, pair.chosen, pair.rejected)))
        for i, pair in enumerate(found)
    ]


def planned(
    args: argparse.Namespace, shape: Any, model: ModelConfig, optim: OptimConfig, way: Way, some: list[TokenisedPair]
) -> dict[str, float]:
    """Bytes of what `dil plan` counts, a row as full as the budget lets it be; `overhead` is outside tensors."""
    row = Lengths(len(some), some, "").row(args.token_budget)
    step = trace_step(shape, model, optim, row, bf16=True, gpu=not args.small, several=True, adapter=way.adapter)
    held = memory(step, Setup(1, Sharding.none, 2, 2, not args.small, way.adapter))
    return {**vars(held), "total": held.total, "parameters": step.parameters, "trained": step.trained}


def measured(
    args: argparse.Namespace,
    shape: Any,
    model: ModelConfig,
    optim: OptimConfig,
    way: Way,
    some: list[TokenisedPair],
    device: torch.device,
) -> dict[str, Any]:
    """Rows of a run's record, and the peaks of tensors and of what the allocator reserved."""
    peak = PeakMemory(device)
    torch.manual_seed(0)
    with torch.device(device):
        policy = empty_model(shape, model)
        choice = choose_layout(policy, Compute(device, True, args.token_budget, 0), args.max_length)
        if way.adapter is not None:  # in float32, as the plan has them; the check of layouts is without autocast
            add_adapter(policy, way.adapter, model.path, None, seed=0)
    enable: Any = policy.activation_checkpointing_enable
    enable(activation_checkpointing_kwargs={"use_reentrant": False})
    zeros = torch.zeros(len(some))
    rows: list[dict[str, Any]] = []
    train(
        policy, LOSSES["dpo"](), build_optimisers(policy, optim), Batch(some, zeros, zeros),
        StepPlan(len(some), args.batch, 1.0, 0), optim, choice.compute, lambda step, row: rows.append(row),
    )  # fmt: skip
    reserved = torch.cuda.max_memory_reserved() if device.type == "cuda" else None
    return {"layout": choice.line, "rows": rows, "peak": peak.peak_bytes() - peak.start, "reserved": reserved}


def render(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    plan = report["plan"]
    tensors = plan["total"] - plan["overhead"]
    lines = [
        f"{report['way']}: {plan['parameters']:,} parameters, {plan['trained']:,} trained",
        f"plan      {tensors / 1e9:.2f} GB in tensors, {plan['total'] / 1e9:.2f} GB with what is assumed outside them",
    ]
    if not report["rows"]:
        return "\n".join([*lines, "measured  not run: no GPU here"])
    reserved = "" if report["reserved"] is None else f", {report['reserved'] / 1e9:.2f} GB reserved"
    rows = report["rows"][1:] or report["rows"]  # kernels are chosen in the first
    mfu = [row["mfu"] for row in rows if "mfu" in row]
    return "\n".join([
        *lines,
        f"measured  {report['peak'] / 1e9:.2f} GB{reserved}; plan / measured {tensors / report['peak']:.3f}",
        f"speed     {np.mean([row['tokens_per_s'] for row in rows]):.0f} tokens/s, MFU "
        + (f"{np.mean(mfu):.1%}" if mfu else "not known: no data sheet for this device"),
        f"rows      {report['layout']}",
    ])  # fmt: skip


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.geometry_7b", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--batch", type=int, default=32, help="pairs in an optimiser step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--token-budget", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--small", action="store_true", help="shrunk, on the CPU: tests the script")
    args = parser.parse_args(argv)
    if args.small:
        args.batch, args.steps, args.max_length, args.token_budget = 4, 2, 96, 256
    return args


if __name__ == "__main__":
    print(render(run(arguments())))
