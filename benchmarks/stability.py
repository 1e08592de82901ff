"""Where numbers break: pairs of 128 to 2,048 tokens under the DIL losses, guards on and off.

`python -m benchmarks.stability` trains the bundled tiny model through dil's own loop in every cell of the grid, writes
a line of JSON a cell, and goes on where it was; `--table` prints the tables of docs/results/stability.md from them.

Shape suffix: B pairs. Log-ratios are in nats, per response under `sum` and per token under `mean`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dil_cli import hub
from dil_cli.config.compose import compose
from dil_cli.config.schema import OptimConfig, TrainConfig
from dil_cli.data.load import load_pairs
from dil_cli.dynamics.measure import score_pairs
from dil_cli.errors import RunFailed
from dil_cli.losses import PreferenceLoss
from dil_cli.losses.common import log_ratios
from dil_cli.tracking.console import make_console
from dil_cli.train.batches import StepPlan
from dil_cli.train.loop import train
from dil_cli.train.optimiser import build_optimisers
from dil_cli.train.prepare import Prepared, prepare
from dil_cli.train.step import Batch
from dil_cli.types import LossOutput, PairLogps

PAIRS = {128: 4, 256: 4, 512: 2, 1024: 2, 2048: 1}
"""Length to pairs of a step; the same pairs in every step, so that their log-ratios grow as fast as they can."""

LOSSES = ("lsif", "ukl", "bce")
REDUCTIONS = ("mean", "sum")
PRECISIONS = ("fp32", "bf16")
UNGUARDED = ("bce",)
"""Losses without an exponential that could overflow: they have no guard to turn off."""


@dataclass(frozen=True)
class Start:
    """How a cell is trained: optimiser steps, a factor on the default learning rate, and how the reference lies."""

    steps: int
    lr_factor: float
    far: bool
    words: str


STARTS = {
    "default": Start(12, 1.0, False, "default learning rate 3e-4, policy = reference at the start"),
    "fast": Start(6, 30.0, False, "30 times the default learning rate, policy = reference at the start"),
    "far": Start(4, 1.0, True, "default learning rate, against a reference whose matrices are random"),
}


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    start: str
    length: int
    loss: str
    reduction: str
    precision: str
    guard: bool


class Watched:
    """A loss that counts what dil's step makes of it: values and slopes that are not finite, and the largest |s|."""

    def __init__(self, loss: PreferenceLoss) -> None:
        self.loss = loss
        self.not_finite = 0
        self.largest = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loss, name)

    def __call__(self, pair: PairLogps) -> LossOutput:
        """The loss's own answer."""
        for s_B in log_ratios(pair, self.loss.reduction):
            self._count(s_B)
            self.largest = max(self.largest, float(s_B.detach().abs().nan_to_num().max()))
        for logps_B in (pair.policy_chosen_B, pair.policy_rejected_B):
            if logps_B.requires_grad:
                logps_B.register_hook(self._count)
        out = self.loss(pair)
        self._count(out.loss_B)
        return out

    def _count(self, values_B: Tensor) -> None:
        self.not_finite += int((~values_B.isfinite()).sum())


class Bench:
    """The policy and the pairs of one length and precision, and the reference log-probs of each start."""

    def __init__(self, length: int, precision: str) -> None:
        config = compose(
            "train",
            [
                f"data.join_to={length}", f"data.max_length={length}", f"data.max_prompt_length={length // 2}",
                f"data.limit={PAIRS[length]}", f"precision={precision}", "optim.schedule=constant", "optim.warmup=0",
            ],
        )  # fmt: skip
        assert isinstance(config, TrainConfig)
        self.optim: OptimConfig = config.optim
        self.prepared: Prepared = prepare(config, load_pairs(config.data, config.seed, True), make_console())
        self.model: PreTrainedModel = self.prepared.policy.model
        self.pairs = self.prepared.train.pairs
        self.trained = copy.deepcopy(self.model.state_dict())
        self._references: dict[bool, PairLogps] = {}

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train the cell, and say how its numbers went."""
        start = STARTS[cell.start]
        reference = self._reference(start.far)
        self.model.load_state_dict(self.trained)
        self.model.zero_grad(set_to_none=True)
        watched = Watched(loss_of(cell))
        optim = replace(self.optim, lr_factor=start.lr_factor)
        rows: list[dict[str, Any]] = []
        stopped, began = None, time.perf_counter()
        try:
            train(
                self.model, watched, build_optimisers(self.model, optim),
                Batch(self.pairs, reference.policy_chosen_B, reference.policy_rejected_B),
                StepPlan(len(self.pairs), len(self.pairs), start.steps, seed=0), optim, self.prepared.compute,
                lambda step, row: rows.append(row),
            )  # fmt: skip
        except RunFailed as failure:
            stopped = failure.what
        norms = 1 if stopped and stopped.startswith("the gradient") else 0
        metrics = sum(isinstance(v, float) and not math.isfinite(v) for row in rows for v in row.values())
        weights = sum(int((~p.isfinite()).sum()) for p in self.model.parameters())
        guards = [row["guard/frac"] for row in rows]
        return {
            **asdict(cell),
            "pairs": len(self.pairs),
            "steps": len(rows),
            "stopped": stopped,
            "not_finite": watched.not_finite + norms + metrics,
            "weights_not_finite": weights,
            "guard_mean": sum(guards) / len(guards) if guards else None,
            "guard_max": max(guards, default=None),
            "largest_log_ratio": watched.largest,
            "largest_grad_norm": max((row["grad_norm"] for row in rows), default=None),
            "seconds": round(time.perf_counter() - began, 2),
        }

    def _reference(self, far: bool) -> PairLogps:
        """Log-probs of the trained model, or of one whose matrices are noise."""
        if far not in self._references:
            self.model.load_state_dict(self.trained)
            if far:
                noise = torch.Generator().manual_seed(0)
                with torch.no_grad():
                    for parameter in self.model.parameters():
                        if parameter.ndim >= 2:
                            parameter.normal_(std=0.02, generator=noise)
            self._references[far] = score_pairs(self.model, self.pairs, self.prepared.compute)
        return self._references[far]


def loss_of(cell: Cell) -> PreferenceLoss:
    """The loss as `dil train` builds it."""
    guard = [] if cell.guard or cell.loss in UNGUARDED else ["loss.exp_cap=null"]
    config = compose("train", [f"loss={cell.loss}", f"loss.reduction={cell.reduction}", *guard])
    loss: PreferenceLoss = config.loss
    return loss


def grid(lengths: Sequence[int], starts: Sequence[str]) -> Iterator[Cell]:
    """All cells; those of one model and one set of pairs follow each other, short pairs first."""
    for length, precision in itertools.product(lengths, PRECISIONS):
        for start, loss, reduction in itertools.product(starts, LOSSES, REDUCTIONS):
            for guard in (True,) if loss in UNGUARDED else (True, False):
                yield Cell(start, length, loss, reduction, precision, guard)


def read(path: Path) -> dict[Cell, dict[str, Any]]:
    """The cells that are done; a last line that was cut is not."""
    done: dict[Cell, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        done[Cell(**{name: row[name] for name in Cell.__dataclass_fields__})] = row
    return done


def main() -> None:
    """The cells that are missing, or the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/stability/cells.jsonl"))
    parser.add_argument("--lengths", type=int, nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--table", action="store_true", help="print what was measured, as Markdown, and stop")
    args = parser.parse_args()
    if args.table:
        print(tables(read(args.out)))
        return
    hub.work_offline()
    done = read(args.out)
    missing = [cell for cell in grid(args.lengths, args.starts) if cell not in done]
    print(f"{len(missing)} cells to run, {len(done)} are in {args.out}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    bench, of = None, None
    for cell in missing:
        if of != (cell.length, cell.precision):
            bench, of = Bench(cell.length, cell.precision), (cell.length, cell.precision)
        assert bench is not None
        row = bench.run(cell)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    broken = [cell for cell, row in read(args.out).items() if cell.guard and (row["not_finite"] or row["stopped"])]
    print(f"guards on: {len(broken)} cells with a number that is not finite")
    sys.exit(1 if broken else 0)


def tables(done: dict[Cell, dict[str, Any]]) -> str:
    """A table a start and guard: a row a loss, reduction and precision, a column a length."""
    parts = []
    for name, start in STARTS.items():
        parts.append(f"### {start.words[0].upper()}{start.words[1:]}; {start.steps} steps")
        for guard, title in ((True, "Guards on"), (False, "Guards off (`loss.exp_cap=null`)")):
            losses = [loss for loss in LOSSES if guard or loss not in UNGUARDED]
            parts.append(f"{title}:\n\n" + _table(done, name, losses, guard))
    return "\n\n".join(parts)


def _table(done: dict[Cell, dict[str, Any]], start: str, losses: Sequence[str], guard: bool) -> str:
    lines = [
        "| Loss | reduction | precision | " + " | ".join(f"{n:,} tokens" for n in PAIRS) + " |",
        "|---" * (3 + len(PAIRS)) + "|",
    ]
    for loss, reduction, precision in itertools.product(losses, REDUCTIONS, PRECISIONS):
        cells = [done.get(Cell(start, length, loss, reduction, precision, guard)) for length in PAIRS]
        lines.append(f"| `{loss}` | {reduction} | {precision} | {' | '.join(map(_shown, cells))} |")
    return "\n".join(lines)


def _shown(row: dict[str, Any] | None) -> str:
    """Not finite, mean and most share of guarded pairs, largest |s|; of a run that stopped, in which step."""
    if row is None:
        return "not run"
    size = row["largest_log_ratio"]
    shown = f"{size:,.0f}" if size >= 100 else f"{size:.1f}"
    if row["stopped"]:
        return f"**{row['not_finite']}**, step {row['steps'] + 1}, {shown}"
    guard = ""
    if row["guard"] and row["loss"] not in UNGUARDED:
        guard = f"{100 * row['guard_mean']:.0f}/{100 * row['guard_max']:.0f} %, "
    return f"{row['not_finite']}, {guard}{shown}"


if __name__ == "__main__":
    main()
