"""dil beside TRL on a CUDA GPU, Mistral-7B's geometry with random weights: `python -m benchmarks.gpu --help`.

Lengths are those of real long pairs (`lengths/alpaca_eval_prefs.json`), ids are random, weights and AdamW float32 under
bfloat16 autocast on both sides. TRL is set as well as 1.16 can be there: reference precomputed, grouped by length, its
own fused head, Liger's layer kernels and FlashAttention where they can be imported.

A machine that has torch, transformers and accelerate and no network takes the rest as wheels, fetched elsewhere:

    pip download --dest wheels -c constraints.txt 'trl==1.16.*' datasets       # there: drop torch and nvidia-* again
    pip install --no-index --find-links wheels --no-deps wheels/*.whl          # here
    python -m benchmarks.gpu --layers 8 --out $OUT

This script imports nothing of dil that needs hydra-core, omegaconf, datasets or wandb; TRL needs datasets.

16 bytes a parameter for weights, gradient and AdamW: all 32 layers are 116 GB, 8 are 32 GB, 16 are 60 GB. `--layers`
keeps the rest of the geometry. `--small` runs the same script on a CPU in a minute, to test it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import machine, models, pairs
from benchmarks.limit import TRAIN_FORWARDS, matmul_rate, must_do
from benchmarks.sides import Job, Result, Side, compare
from benchmarks.trl_side import Settings
from benchmarks.vs_trl import checks
from dil_cli.models.devices import gpu_here

OUT = Path("outputs/bench")


def main() -> None:
    """Every checkpointing setting in turn, both sides in each; the file is written after each."""
    args = arguments()
    report = run(args)
    from benchmarks.table import render

    print("\n".join(render([report])))
    if any(not check["ok"] for setting in report["settings"] for check in setting["checks"]):
        raise SystemExit("a side failed or did not compute the same thing, see above")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and write `gpu.json`; without a GPU and without `--small` it says "not measured"."""
    import torch

    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "gpu.json"
    shape = replace(models.MISTRAL_SMALL if args.small else models.MISTRAL_7B)
    shape = replace(shape, layers=args.layers or shape.layers)
    there = {name: importlib.util.find_spec(name) is not None for name in ("trl", "liger_kernel", "flash_attn")}
    about = (
        f"{args.batch} pairs a step, {args.steps} steps a round, {args.rounds} rounds, each in a process of its own. "
        "MFU: must-do FLOPs (the prompt once, no padding, no recomputation) over the maker's dense bf16 rate. "
        "Importable: " + ", ".join(f"{name} {'yes' if found else 'no'}" for name, found in there.items())
    )
    report: dict[str, Any] = {
        "benchmark": "gpu", "small": args.small, "command": f"python -m benchmarks.gpu {' '.join(sys.argv[1:])}",
        "machine": machine.describe(args.threads), "title": title(shape, args), "about": about, "settings": [],
    }  # fmt: skip
    device = "cuda" if torch.cuda.is_available() and not args.small else "cpu"
    if device == "cuda" or args.small:
        torch.set_num_threads(args.threads)
        for checkpointing in args.checkpointing:
            setting = measure(shape, device, checkpointing == "on", there, args)
            report["settings"].append(setting)
            file.write_text(json.dumps(report, indent=1))
    file.write_text(json.dumps(report, indent=1))
    return report


def title(shape: models.Shape, args: argparse.Namespace) -> str:
    """What was trained, for the head of the table."""
    what = "a small stand-in (a smoke test: the numbers mean nothing)" if args.small else "Mistral-7B geometry"
    return f"{what}, {shape.layers} layers, pairs as long as alpaca_eval_prefs cut at {args.max_length}, bf16"


def measure(
    shape: models.Shape, device: str, checkpointing: bool, there: dict[str, bool], args: argparse.Namespace
) -> dict[str, Any]:
    """Both sides under one checkpointing setting."""
    found = pairs.from_lengths(shape.vocab, args.max_length, number=max(400, 2 * args.batch * args.steps))
    batches = pairs.choose(found, args.batch, args.steps)
    job = Job(
        shape, batches, bf16=True, threads=args.threads, rounds=args.rounds, device=device,
        token_budget=args.token_budget, lr=1e-6,
    )  # fmt: skip
    attention = "flash_attention_2" if there["flash_attn"] and device == "cuda" else "sdpa"
    best = Settings(
        checkpointing=checkpointing, micro_batch=args.micro_batch, liger=there["liger_kernel"] and device == "cuda"
    )
    plain = replace(best, liger=False)
    sides = [
        Side("trl_best", f"TRL, {attention}{', Liger layers' if best.liger else ''}", best, True, attention=attention),
        Side("dil_first", "dil, first run", reference=True, checkpointing=checkpointing),
        Side("dil_cached", "dil, reference cached", checkpointing=checkpointing),
    ]
    if best != plain or attention != "sdpa":
        sides.insert(0, Side("trl_sdpa", "TRL, sdpa", plain, True))
    if not there["trl"]:
        sides = [side for side in sides if side.trl is None]
    rates: list[float] = []
    results = compare(
        sides, job, together=False, between=lambda: rates.append(matmul_rate(bf16=True, device=device, seconds=0.5))
    )
    forward = must_do(shape, batches.pairs).forward
    return {
        "checkpointing": checkpointing, "batch": args.batch, "steps": args.steps, "shape": asdict(shape),
        "tokens": pairs.tokens_per_pair(batches), "matmul_tflops": max(rates) / 1e12,
        "sides": [summary(side, results[side.name], len(batches.pairs), forward, max(rates)) for side in sides],
        "checks": checks(results, {side.name: side.grouped for side in sides}, bf16=True),
    }  # fmt: skip


def summary(side: Side, result: Result, number: int, forward: float, rate: float) -> dict[str, Any]:
    """Pairs per second, and the must-do work done in them over the maker's peak and over the measured rate."""
    speeds = sorted(number / seconds for seconds in result.seconds)
    middle = speeds[len(speeds) // 2] if speeds else 0.0
    flops = forward * (TRAIN_FORWARDS + side.reference) * middle
    here = gpu_here()
    peak = here.peak(bf16=True) if here else None
    return {
        **asdict(result), "title": side.title, "pairs_per_s": middle, "fastest": max(speeds, default=0),
        "slowest": min(speeds, default=0), "of_limit": flops / rate, "mfu": flops / peak if peak else None,
    }  # fmt: skip


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, help="of the 32; fewer fit a smaller GPU")
    parser.add_argument("--checkpointing", nargs="+", choices=["on", "off"], default=["on", "off"])
    parser.add_argument("--batch", type=int, default=16, help="pairs in an optimiser step")
    parser.add_argument("--micro-batch", type=int, default=2, help="pairs in a forward of TRL")
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--token-budget", type=int, default=4096, help="dil's tokens in a micro-batch")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--small", action="store_true", help="a stand-in on the CPU: tests the script")
    args = parser.parse_args(argv)
    if args.small:
        args.batch, args.steps, args.rounds, args.max_length = 2, 2, 1, 96
    return args


if __name__ == "__main__":
    main()
