"""One run over 1, 2 and 4 processes: pairs a second, waiting for others, memory.

Every process has one thread, so that two processes on two cores are compared with one process on one core. All ways
take turns, and each round is `dil train` as a user types it. `python -m benchmarks.processes --help`
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine

WARM_UP = 2
"""Steps that are not counted: memory is fetched and kernels are prepared in them."""


@dataclass(frozen=True)
class Way:
    """A kind of run and its number of processes."""

    kind: str
    processes: int


WAYS = (Way("none", 1), Way("ddp", 2), Way("fsdp2", 2), Way("ddp", 4), Way("fsdp2", 4))


def main() -> None:
    """Run all ways in turn, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=256, help="to train on; a step is 32 of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    parser.add_argument("overrides", nargs="*", help="for dil train, such as model=... loss=...")
    args = parser.parse_args()
    seen: dict[Way, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(args.rounds):
        for way in WAYS:
            seen[way].append(measure(way, args.pairs, args.overrides))
            print(f"round {number + 1}, {way.kind}, {way.processes}: {seen[way][-1]}", file=sys.stderr, flush=True)
    rows = [summary(way, rounds, seen[WAYS[0]]) for way, rounds in seen.items()]
    report = {"benchmark": "processes", "machine": machine.describe(1), "pairs": args.pairs, "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "processes.json").write_text(json.dumps(report, indent=1))
    print(table(rows))


def measure(way: Way, pairs: int, overrides: Sequence[str]) -> dict[str, float]:
    """Medians over the steps of one run."""
    with tempfile.TemporaryDirectory() as output:
        words = [
            "train", f"data.limit={pairs}", "probe.pairs=8", "probe.times=1", "tracker=none", f"output={output}",
            f"distributed={way.kind}", f"distributed.processes={way.processes}", *overrides,
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "dil_cli", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"dil {' '.join(words)}\n{done.stderr}")
        (record,) = Path(output).glob("*/metrics.jsonl")
        steps = [row for line in record.read_text().splitlines() if "pairs_per_s" in (row := json.loads(line))]
    counted = steps[WARM_UP:]
    return {
        "pairs_per_s": statistics.median(row["pairs_per_s"] for row in counted),
        "communication": statistics.median(row.get("communication", 0.0) for row in counted),
        "memory_gb": max(row["memory_gb"] for row in counted),
    }


def summary(way: Way, rounds: Sequence[dict[str, float]], alone: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds; how many times as fast as one process in the same round, least and most."""
    ratios = [mine["pairs_per_s"] / one["pairs_per_s"] for mine, one in zip(rounds, alone, strict=True)]
    return {
        "kind": way.kind,
        "processes": way.processes,
        **{name: statistics.median(row[name] for row in rounds) for name in rounds[0]},
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| `distributed` | processes | pairs/s | times one process (least, most) | waiting | GB of the largest |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = f"{row['ratio']:.2f} ({row['ratio_least']:.2f}, {row['ratio_most']:.2f})"
        lines.append(
            f"| `{row['kind']}` | {row['processes']} | {row['pairs_per_s']:.1f} | {times} "
            f"| {row['communication']:.0%} | {row['memory_gb']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
