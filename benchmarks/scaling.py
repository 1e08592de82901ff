"""dil's cost per pair, by number of pairs and by length: `python -m benchmarks.scaling --help`.

A data set's cost must be a pair's cost times its pairs, and a longer pair's must not grow faster than the work it
cannot avoid.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, models, pairs
from benchmarks.limit import TRAIN_FORWARDS, matmul_rate, must_do
from benchmarks.models import Shape
from benchmarks.pairs import Pair

NUMBERS = (200, 500, 1000, 2000)
LENGTHS = (64, 128, 256, 512, 1024, 2048)
TOKENS_A_LENGTH = 16384
"""Unique tokens that each length is measured on, so that each takes about as long."""


def main() -> None:
    """Both tables, written to one file."""
    args = arguments()
    import torch

    torch.set_num_threads(args.threads)
    shape = models.QUICK if args.quick else models.CPU
    real, source = pairs.load("hh", args.data, min(shape.vocab, 8192))
    if args.quick:
        real = [pair for pair in real if pair.longest < 128]
    rates = [matmul_rate(bf16=False)]
    lengths = [by_length(shape, length, args) for length in args.lengths]
    rates.append(matmul_rate(bf16=False))
    numbers = [{"pairs": number, **cost(shape, repeat(real, number), args)} for number in args.numbers]
    rates.append(matmul_rate(bf16=False))
    for row in lengths:
        row["of_limit"] = row["gflop"] / row["ms"] * 1e3 / (max(rates) / 1e9)
    command = f"python -m benchmarks.scaling {' '.join(sys.argv[1:])}"
    report: dict[str, Any] = {
        "benchmark": "scaling", "quick": args.quick, "command": command,
        "machine": machine.describe(args.threads), "numbers": numbers, "lengths": lengths,
        "about": f"by number: {source}, taken in turn; by length: random ids, half of a pair its prompt and a quarter "
        f"each response; {args.batch} pairs a step, fp32, {shape.vocab:,} tokens vocabulary, dil "
        f"{torch.get_num_threads()} threads, machine {max(rates) / 1e9:.0f} GFLOP/s",
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "scaling.json"
    file.write_text(json.dumps(report, indent=1))
    from benchmarks.table import render

    print("\n".join(render([report])))
    print(f"written to {file}")


def repeat(real: Sequence[Pair], number: int) -> list[Pair]:
    """`number` pairs: the real ones again and again."""
    return [real[index % len(real)] for index in range(number)]


def synthetic(shape: Shape, length: int, number: int) -> list[Pair]:
    """Pairs of `length` unique tokens: half the prompt, a quarter each response."""
    rng = np.random.default_rng(length)
    sizes = (length // 2, length // 4, length // 4)
    return [Pair(*(rng.integers(1, shape.vocab, size, dtype=np.int32) for size in sizes)) for _ in range(number)]


def by_length(shape: Shape, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """A reference pass and an epoch over pairs of one length, beside their must-do work."""
    tokens = TOKENS_A_LENGTH // 8 if args.quick else TOKENS_A_LENGTH
    some = synthetic(shape, length, max(args.batch, tokens // length))
    measured = cost(shape, some, args)
    # A reference pass is one more forward.
    gflop = (TRAIN_FORWARDS + 1) * must_do(shape, some).forward / 1e9
    return {"tokens": length, "pairs": len(some), "gflop": gflop, "ms": measured["score_ms"] + measured["train_ms"]}


def cost(shape: Shape, some: Sequence[Pair], args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds a pair of the reference pass and of one epoch, after a step that warms up."""
    from benchmarks.dil_side import Dil

    model = models.build(shape)
    dil = Dil(model, some, token_budget=args.token_budget)
    order = np.random.default_rng(0).permutation(len(some)).tolist()
    batches = [order[at : at + args.batch] for at in range(0, len(order), args.batch)]
    warm = Dil(model, [some[index] for index in batches[0]], token_budget=args.token_budget)
    warm.score()
    warm.train([list(range(len(batches[0])))])
    started = time.perf_counter()
    dil.score()
    scored = time.perf_counter()
    dil.train(batches)
    done = time.perf_counter()
    return {"score_ms": 1e3 * (scored - started) / len(some), "train_ms": 1e3 * (done - scored) / len(some)}


def arguments() -> argparse.Namespace:
    """The command line; `DATA` may be in the environment."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("DATA") or None, help="folder with hh_harmless.jsonl.gz"
    )
    parser.add_argument("--numbers", nargs="+", type=int, default=list(NUMBERS))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--token-budget", type=int, default=2048, help="dil's tokens in a micro-batch")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--quick", action="store_true", help="a tiny model and few pairs: a smoke test")
    args = parser.parse_args()
    if args.quick:
        args.numbers, args.lengths = [20, 40], [64, 128]
    return args


if __name__ == "__main__":
    main()
