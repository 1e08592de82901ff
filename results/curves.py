"""What a run had when it reached a margin or an accuracy, and the slopes of the loss on the way. N points, P pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.dynamics.probe import read_probe
from dil_cli.dynamics.statistics import MIN_MARGIN_GAIN, Float64
from dil_cli.report.record import Record, read_rows, won

AT_0 = {"delta/chosen": 0.0, "delta/rejected": 0.0, "delta/margin": 0.0}


def series(record: Record, key: str) -> Float64:
    """A metric of the probe set at each measurement, (N,); what it is before the first step by definition."""
    return np.array([_at(row, key) for row in record.probe], dtype=np.float64)


def ranked(record: Record) -> Float64:
    """Share of the held-out pairs whose margin per token grew, at each measurement, (N,).

    From the pairs, since `probe/accuracy` is under the run's own reduction; shares of sums and of means do not compare.
    """
    rows = read_probe(RunFolder(record.run.folder).probe)
    columns = {name: rows.column(name).to_numpy() for name in rows.column_names}
    grew = won(columns, "mean")
    return np.array([grew[columns["step"] == row["step"]].mean() for row in record.probe])


def per_response(record: Record, side: str) -> Float64:
    """Change of the mean log-prob of whole responses since step 0, nats, (N,)."""
    sums_N = np.array([row[f"probe/logps_sum/{side}"] for row in record.probe], dtype=np.float64)
    change: Float64 = sums_N - sums_N[0]
    return change


def chosen_by_length(record: Record) -> tuple[NDArray[np.int64], Float64]:
    """Tokens of each held-out chosen response, ascending, and its change of log-prob per token, (P,) each."""
    rows = read_probe(RunFolder(record.run.folder).probe)
    step, tokens, sums = (rows.column(name).to_numpy() for name in ("step", "chosen_tokens", "chosen_logp_sum"))
    first, last = step == step.min(), step == step.max()
    order = np.argsort(tokens[first], kind="stable")
    tokens_P, change_P = tokens[first], (sums[last] - sums[first]) / tokens[first]
    return tokens_P[order], change_P[order]


def reached(x_N: Sequence[float] | Float64, y_N: Sequence[float] | Float64, level: float) -> float | None:
    """y where x first reaches `level` from below, on straight lines between measurements; None where it never does."""
    for i in range(1, len(x_N)):
        if x_N[i - 1] < level <= x_N[i]:
            part = (level - x_N[i - 1]) / (x_N[i] - x_N[i - 1])
            return float(y_N[i - 1] + part * (y_N[i] - y_N[i - 1]))
    return None


def costs(chosen_N: Float64, margin_N: Float64) -> Float64:
    """Chosen likelihood lost per margin gained, (N,); NaN as long as the margin has hardly grown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(margin_N >= MIN_MARGIN_GAIN, -chosen_N / margin_N, np.nan)


def slopes(record: Record) -> Float64:
    """|dL/ds_l| : |dL/ds_w| at each step, mean over the batch each."""
    rows = [row for row in read_rows(RunFolder(record.run.folder).metrics) if "weight/rejected" in row]
    return np.array([row["weight/rejected"] / row["weight/chosen"] for row in rows], dtype=np.float64)


def _at(row: Mapping[str, Any], key: str) -> float:
    value = row.get(f"probe/{key}")
    if value is None and row["step"] == 0:
        value = AT_0[key]
    return float("nan") if value is None else float(value)
