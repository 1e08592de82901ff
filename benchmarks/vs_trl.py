"""dil beside TRL's DPOTrainer in one run: `python -m benchmarks.vs_trl --help`, and README.md for what is compared."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import machine, models, pairs
from benchmarks.limit import TRAIN_FORWARDS, matmul_rate, must_do
from benchmarks.sides import Job, Result, Side, compare
from benchmarks.trl_side import Settings

OUT = Path("outputs/bench")
GROUPED = Settings(checkpointing=False, matmul="medium")
TUNED = replace(GROUPED, micro_batch=2)
SIDES = (
    Side("trl_online", "TRL as shipped, reference online", Settings(precompute=False)),
    Side("trl_precomputed", "TRL as shipped, reference precomputed", Settings()),
    Side("trl_plain", "that, without checkpointing", Settings(checkpointing=False)),
    Side("trl_grouped", "that, grouped by length, oneDNN", GROUPED, grouped=True),
    Side("trl_tuned", "TRL tuned: that, in micro-batches", TUNED, grouped=True),
    Side("trl_patched", "TRL tuned, its source patched", replace(TUNED, compact_head=True), grouped=True),
    Side("dil_first", "dil, first run (reference pass included)", reference=True),
    Side("dil_cached", "dil, reference cached"),
    Side("dil_checkpointed", "that, with checkpointing", checkpointing=True),
)
SLOW = ("trl_plain", "trl_grouped", "trl_patched", "dil_checkpointed")
"""Left out of a smoke test."""
VOCABULARIES = {"8k": 8192, "32k": 32768}
TOKENIZER_VOCAB = 8192
"""Of the ids under both vocabularies: only the head grows, and the text bundled here is too short for 32k merges."""
STEPS = {"hh": 4, "long": 2}
"""Optimiser steps in a round, by kind of pairs."""
TOLERANCE = {False: 1e-3, True: 1e-2}
"""Relative difference in loss and gradient norm of the first step, by bf16."""


def main() -> None:
    """Every chosen combination, one after the other; the file is written after each."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "vs_trl.json"
    report: dict[str, Any] = {
        "benchmark": "vs_trl",
        "quick": args.quick,
        "command": args.command,
        "machine": machine.describe(args.threads),
        "settings": [],
    }
    bad = False
    for kind, vocab, dtype in itertools.product(args.pairs, args.vocab, args.dtype):
        started = time.perf_counter()
        setting = measure(kind, vocab, dtype == "bf16", args)
        setting["wall_s"] = time.perf_counter() - started
        report["settings"].append(setting)
        file.write_text(json.dumps(report, indent=1))
        from benchmarks.table import vs_trl_table

        print("\n".join(vs_trl_table(setting)), flush=True)
        bad |= any(not check["ok"] for check in setting["checks"])
    print(f"written to {file}")
    if bad:
        raise SystemExit("the sides did not compute the same thing, see the checks above")


def measure(kind: str, vocab: str, bf16: bool, args: argparse.Namespace) -> dict[str, Any]:
    """One combination: the sides' rounds, the machine's rate between them, and what follows from both."""
    import torch

    torch.set_num_threads(args.threads)
    shape = (models.QUICK if args.quick else models.CPU).with_vocab(VOCABULARIES[vocab])
    all_pairs, source = pairs.load(kind, args.data, TOKENIZER_VOCAB)
    if args.quick:
        all_pairs = sorted(all_pairs, key=lambda pair: pair.longest)[: len(all_pairs) // 3]
    steps = args.steps or STEPS[kind]
    batches = pairs.choose(all_pairs, args.batch, steps)
    job = Job(shape, batches, bf16, args.threads, args.rounds, token_budget=args.token_budget)
    sides = [
        replace(side, trl=replace(side.trl, micro_batch=args.micro_batch))
        if side.trl and side.trl.micro_batch
        else side
        for side in SIDES
        if side.name in args.sides
    ]
    print(f"{kind}, {vocab}, {'bf16' if bf16 else 'fp32'}: {source}", flush=True)
    rates: list[float] = []
    results = compare(sides, job, together=not args.apart, between=lambda: rates.append(matmul_rate(bf16)))
    work = must_do(shape, batches.pairs)
    return {
        "pairs": kind, "vocab": vocab, "dtype": "bf16" if bf16 else "fp32", "source": source,
        "shape": asdict(shape), "batch": args.batch, "steps": steps, "rounds": args.rounds,
        "token_budget": args.token_budget, "tuned": asdict(replace(TUNED, micro_batch=args.micro_batch)),
        "tokens": pairs.tokens_per_pair(batches),
        "tokens_of_all": pairs.whole_set(all_pairs, args.batch),
        "work_gflop": {name: value / 1e9 for name, value in asdict(work).items()},
        "matmul_gflops": max(rates) / 1e9,
        "sides": [summary(side, results[side.name], job, work.forward, max(rates)) for side in sides],
        "checks": checks(results, {side.name: side.grouped for side in sides}, bf16),
    }  # fmt: skip


def summary(side: Side, result: Result, job: Job, forward: float, rate: float) -> dict[str, Any]:
    """Pairs per second of every round, and the part of the limit that the median reaches."""
    number = len(job.batches.pairs)
    speeds = sorted(number / seconds for seconds in result.seconds)
    middle = (
        speeds[len(speeds) // 2] if len(speeds) % 2 else sum(speeds[len(speeds) // 2 - 1 :][:2]) / 2 if speeds else 0
    )
    online = side.reference or (side.trl is not None and not side.trl.precompute)
    flops = forward * (TRAIN_FORWARDS + online)
    return {
        **asdict(result), "title": side.title, "pairs_per_s": middle, "fastest": max(speeds, default=0),
        "slowest": min(speeds, default=0), "of_limit": flops * middle / rate,
        "reference_pairs_per_s": number / result.reference_seconds if result.reference_seconds else None,
    }  # fmt: skip


def checks(results: dict[str, Result], grouped: dict[str, bool], bf16: bool) -> list[dict[str, Any]]:
    """Is it the same computation? Loss and gradient norm of each first step against dil's on the same batch."""
    found: list[dict[str, Any]] = []
    ours = next((r for name, r in results.items() if name.startswith("dil") and r.gradients), None)
    for name, result in results.items():
        if result.failed or result.first is None or ours is None:
            found.append(
                {"side": name, "ok": result.failed is None, "note": result.failed or "nothing to compare with"}
            )
            continue
        loss, norm = ours.gradients["grouped" if grouped[name] else "shuffled"]
        differences = {
            "loss": abs(result.first[0] - loss) / loss,
            "from_log2": abs(result.first[0] - math.log(2)) / math.log(2),
            "gradient": abs(result.first[1] - norm) / norm,
            "weights": abs(result.weight_sum - ours.weight_sum) / ours.weight_sum,
        }
        ok = all(difference <= TOLERANCE[bf16] for difference in differences.values())
        first = {"first_loss": result.first[0], "first_norm": result.first[1]}
        found.append({"side": name, "ok": ok, **first, **differences})
        # The same batches in the same order must end at the same distance from the start; said, not judged.
        end = results.get("dil_cached")
        if end and end.moved and not grouped[name] and name.startswith("trl"):
            found[-1]["moved"] = abs(result.moved - end.moved) / end.moved
    return found


def arguments() -> argparse.Namespace:
    """The command line; `DATA` may be in the environment."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vs_trl", description=__doc__)
    names = [side.name for side in SIDES]
    data = os.environ.get("DATA") or None
    parser.add_argument(
        "--data", type=Path, default=data, help="folder with hh_harmless.jsonl.gz, alpaca_eval_prefs_train.jsonl.gz"
    )
    parser.add_argument("--pairs", nargs="+", choices=["hh", "long"], default=["hh", "long"])
    parser.add_argument("--vocab", nargs="+", choices=list(VOCABULARIES), default=list(VOCABULARIES))
    parser.add_argument("--dtype", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--sides", nargs="+", choices=names, default=names)
    parser.add_argument("--batch", type=int, default=8, help="pairs in an optimiser step")
    parser.add_argument("--steps", type=int, help=f"optimiser steps in a round ({STEPS})")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--token-budget", type=int, default=1024, help="dil's tokens in a micro-batch")
    parser.add_argument(
        "--micro-batch", type=int, default=TUNED.micro_batch, help="pairs in a forward of the tuned TRL"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--apart", action="store_true", help="every round a process of its own: slower, for little memory"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, one combination: a smoke test")
    args = parser.parse_args()
    args.command = "python -m benchmarks.vs_trl " + " ".join(sys.argv[1:])
    if args.quick:
        args.pairs, args.vocab, args.dtype, args.rounds = ["hh"], ["8k"], ["fp32"], 2
        args.steps = args.steps or 2
        args.sides = [name for name in args.sides if name not in SLOW]
    return args


if __name__ == "__main__":
    main()
