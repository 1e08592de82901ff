"""Means over the seeds of what was measured of a sweep's runs, as rows for the table on the console."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dil_cli.evaluate.target import Target
from dil_cli.report.evaluations import conditions
from dil_cli.report.experiment import arrange
from dil_cli.report.intervals import t_interval, t_quantile
from dil_cli.report.record import read_records


def over_seeds(measured: Sequence[tuple[Target, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A record-like row for each benchmark and each group of runs that differ by their seed alone, two or more.

    Runs are grouped as `dil report` groups them, and records only where they were measured under the same conditions.
    """
    runs = {target.run.hash: target.run for target, _ in measured if target.run is not None}
    found, _ = read_records(list(runs.values()))
    if len(found) < 2:
        return []
    rows = []
    for group in arrange(found).groups:
        hashes = {record.run.hash for record in group.records}
        alike: dict[str, list[Mapping[str, Any]]] = {}
        for target, record in measured:
            if target.run is not None and target.run.hash in hashes:
                alike.setdefault(f"{record['benchmark']} {conditions(record)}", []).append(record)
        names = {"loss": group.loss}
        for records in alike.values():
            if len(records) > 1 and len({record["checkpoint"]["name"] for record in records}) == len(hashes):
                rows.append(_mean(records, names | {"name": f"{group.label}: mean of {len(records)} seeds"}))
    return rows


def _mean(records: Sequence[Mapping[str, Any]], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Of the metrics that all have; `stderr` and `intervals` are over the seeds."""
    shared = [name for name in records[0]["metrics"] if all(name in record["metrics"] for record in records)]
    found = {name: t_interval([record["metrics"][name] for record in records]) for name in shared}
    ends = {name: (one.low, one.high) for name, one in found.items() if one.low is not None and one.high is not None}
    per_error = 2 * t_quantile(0.975, len(records) - 1)
    return {
        "benchmark": records[0]["benchmark"],
        "checkpoint": dict(checkpoint),
        "pairs": records[0].get("pairs"),
        "metrics": {name: one.mean for name, one in found.items()},
        "intervals": {name: list(both) for name, both in ends.items()},
        "stderr": {name: (high - low) / per_error for name, (low, high) in ends.items() if math.isfinite(high - low)},
    }
