"""What a finished run leaves, to be compared with what another one left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dil_cli.tracking.record import read_metrics
from dil_cli.train.throughput import MEASURED

OFTEN = "checkpoint.resume_minutes=0"


@dataclass(frozen=True)
class Traces:
    """What a finished run leaves, less what clocks and the machine's memory say."""

    rows: list[dict[str, Any]]
    files: dict[str, bytes]
    result: dict[str, Any]


def traces(run: Path) -> Traces:
    rows = [
        {k: v for k, v in row.items() if k.rpartition("/")[2] not in MEASURED}
        for row in read_metrics(run / "metrics.jsonl")
    ]
    result = json.loads((run / "result.json").read_text())
    del result["train_seconds"]
    kept = [path for part in ("probe", "checkpoints") for path in sorted((run / part).rglob("*")) if path.is_file()]
    kept = [path for path in kept if path.name != "dil_manifest.json"]  # has the run's output folder in it
    return Traces(rows, {str(path.relative_to(run)): path.read_bytes() for path in kept}, result)


def run_in(output: Path) -> Path:
    (manifest,) = output.glob("*/manifest.json")
    return manifest.parent
