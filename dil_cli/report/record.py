"""What a finished run recorded, as far as a report needs it: the curves, the last measurement pair by pair, the costs.

P probe pairs, T optimiser steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.dynamics.statistics import ROUNDING, Float64, wins
from dil_cli.errors import DilError
from dil_cli.files import LARGEST
from dil_cli.report.evaluations import Evaluation, read_evaluations
from dil_cli.report.runs import Damaged, Run
from dil_cli.tracking.record import read_metrics


@dataclass(frozen=True, eq=False)
class Pairs:
    """The last measurement of the probe set, (P,) each; what the run has no number of is NaN.

    Changes are nats per token since step 0. `won_mean` is 1 where the margin grew per token, 0.5 for a tie;
    `won_sum` the same of whole responses, whatever the run's own reduction.
    """

    row: np.ndarray
    chosen_tokens: np.ndarray
    chosen: Float64
    rejected: Float64
    margin: Float64
    won_mean: Float64
    won_sum: Float64

    @property
    def both_falling(self) -> Float64:
        """1 where both responses became less likely."""
        both = (self.chosen < 0) & (self.rejected < 0)
        return np.where(np.isnan(self.rejected), np.nan, both)


@dataclass(frozen=True, eq=False)
class Steps:
    """What each optimiser step says of its numbers, (T,) each; NaN where it says nothing.

    `grad_norm` is the gradient's norm before clipping, `guarded` the share of the batch of whose pairs the loss has
    bent an exponential.
    """

    step: Float64
    grad_norm: Float64
    guarded: Float64


@dataclass(frozen=True, eq=False)
class Record:
    """A finished run and what it measured."""

    run: Run
    probe: tuple[dict[str, Any], ...]
    pairs: Pairs
    steps: Steps
    pairs_per_s: float | None
    memory_gb: float | None
    evals: tuple[Evaluation, ...]
    notes: tuple[str, ...] = ()

    @property
    def end(self) -> Mapping[str, Any]:
        """The final numbers."""
        result = self.run.result or {}
        end: Mapping[str, Any] = result["end"]
        return end


def read_records(runs: Sequence[Run]) -> tuple[list[Record], list[Damaged]]:
    """The records of the runs that are done; those whose record is damaged, with the reason."""
    records, damaged = [], []
    for run in runs:
        if run.status != "done":
            continue
        try:
            records.append(read_record(run))
        except DilError as error:
            damaged.append(Damaged(run.folder, error.what))
    return records, damaged


def read_record(run: Run) -> Record:
    """The record of a run that is done.

    Raises:
        DilError: naming the file that is missing or damaged.
    """
    folder = RunFolder(run.folder)
    rows = read_rows(folder.metrics)
    probe = tuple(row for row in rows if row.get("probe/logps/chosen") is not None)
    if not probe:
        raise DilError("metrics.jsonl holds no probe measurement", str(folder.metrics))
    rates, memory = ([row[key] for row in rows if _is_number(row.get(key))] for key in ("pairs_per_s", "memory_gb"))
    step = int((run.result or {})["end"]["step"])
    evals, notes = read_evaluations(run.folder, str((run.result or {}).get("checkpoint")))
    return Record(
        run=run,
        probe=probe,
        pairs=_read_pairs(folder.probe / f"step-{step:06d}.parquet"),
        steps=_read_steps(rows),
        pairs_per_s=median(rates) if rates else None,
        memory_gb=max(memory) if memory else None,
        evals=evals,
        notes=notes,
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, each with a step.

    Raises:
        DilError: when the file is missing or damaged.
    """
    if not path.is_file():
        raise DilError("metrics.jsonl is missing", str(path))
    try:
        rows = read_metrics(path)
    except DilError as error:
        raise DilError(f"metrics.jsonl: {error.what}", str(path)) from error
    if not all(_is_number(row.get("step")) for row in rows):
        raise DilError("metrics.jsonl: a row has no step", str(path))
    if any(_is_number(value) and abs(value) > LARGEST for row in rows for value in row.values()):
        raise DilError("metrics.jsonl holds a number that is too large", str(path))
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_steps(rows: Sequence[Mapping[str, Any]]) -> Steps:
    def column(key: str) -> Float64:
        return np.array([row[key] if _is_number(row.get(key)) else np.nan for row in trained], dtype=np.float64)

    trained = [row for row in rows if "grad_norm" in row]
    return Steps(column("step"), column("grad_norm"), column("guard/frac"))


def _read_pairs(path: Path) -> Pairs:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
        # Neither read_table nor to_numpy, which import pandas, and that takes as long as a hundred of these files.
        column = {name: np.array(table.column(name).to_pylist(), dtype=np.float64) for name in table.column_names}
        return Pairs(
            row=column["row"].astype(np.int64),
            chosen_tokens=column["chosen_tokens"].astype(np.int64),
            chosen=column["delta_chosen"],
            rejected=column["delta_rejected"],
            margin=column["delta_margin"],
            won_mean=won(column, "mean"),
            won_sum=won(column, "sum"),
        )
    except FileNotFoundError as error:
        raise DilError(f"probe/{path.name} is missing", str(path)) from error
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise DilError(f"probe/{path.name} is damaged", str(path)) from error


def won(column: Mapping[str, Float64], reduction: str) -> Float64:
    """1 where a pair's margin grew since the reference, (P,), as `accuracy` counts.

    Ties are half; a margin within the rounding of a float32 sum is a tie.

    Args:
        column: of a table of the probe's pairs, (P,) each.
        reduction: "mean" for margins per token, "sum" for those of whole responses.
    """
    tokens = [column[f"{side}_tokens"] if reduction == "mean" else 1.0 for side in ("chosen", "rejected")]
    sums = [column["chosen_logp_sum"], column["rejected_logp_sum"]]
    starts = [column["reference_chosen_sum"], column["reference_rejected_sum"]]
    with np.errstate(divide="ignore", invalid="ignore"):  # a demonstration's rejected response has no token
        s_w, s_l = ((now - start) / count for now, start, count in zip(sums, starts, tokens, strict=True))
        size = sum(np.abs(now / count) for now, count in zip(sums, tokens, strict=True))
    margin = s_w - s_l
    return np.where(np.isnan(margin), np.nan, wins(margin, ROUNDING * size))
