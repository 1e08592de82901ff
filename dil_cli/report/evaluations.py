"""What `dil eval` left beside a run's checkpoints, and which of it may be averaged or compared."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dil_cli.files import parse_json


@dataclass(frozen=True)
class Evaluation:
    """One `eval/*.json`: its benchmark, of a checkpoint before the last with the step; its metrics.

    `questions` are questions, prompts or pairs, None where the file does not say. Two evaluations of one benchmark are
    comparable where `conditions` agree.
    """

    benchmark: str
    questions: int | None
    conditions: str
    metrics: Mapping[str, float]


def conditions(record: Mapping[str, Any]) -> str:
    """A hash of what must agree: number, text and origin of the questions, judge, opponent, how it was asked."""
    judge = {name: value for name, value in record.get("judge", {}).items() if name != "base_url"}
    facts = {
        "questions": number(record),
        "text": record.get("pairs_sha256") or record.get("checkpoint", {}).get("data_sha256"),
        "judge": judge,
        "opponent": record.get("opponent", {}).get("name"),
        "template": record.get("chat_template", {}).get("used"),
        **{name: record.get(name) for name in ("sampling", "data", "shots", "limit", "lm_eval")},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def number(record: Mapping[str, Any]) -> int | None:
    """Questions, prompts or pairs behind a record; None where it does not say."""
    found = record.get("pairs", record.get("questions", {}).get("scored"))
    return None if found is None else int(found)


def read_evaluations(folder: Path, last: str) -> tuple[tuple[Evaluation, ...], tuple[str, ...]]:
    """Every `eval/*.json` below a run's folder, by name; and a sentence for each that cannot be used.

    Args:
        folder: the run's; of two with one benchmark, its own goes before its last checkpoint's.
        last: the last checkpoint, relative to the folder.
    """
    found: dict[str, Evaluation] = {}
    notes = []
    files = [path for path in folder.glob("**/eval/*.json") if path.is_file()]  # reading a pipe would never end
    for path in sorted(files, key=lambda path: (-len(path.parts), str(path))):
        place = path.parents[1].relative_to(folder)
        try:
            record = parse_json(path.read_text(encoding="utf-8"))
            label = str(record["benchmark"]) + ("" if str(place) in {".", last} else f" at {place.name}")
            metrics = {str(name): float(value) for name, value in record["metrics"].items() if _is_finite(value)}
            found[label] = Evaluation(label, number(record), conditions(record), metrics)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            notes.append(f"{path.relative_to(folder).as_posix()} is no evaluation result")
    return tuple(found[label] for label in sorted(found)), tuple(notes)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
