"""Run folders as a training leaves them, written without one: 50 steps, 5 measurements of 256 pairs.

`effects` says how far each loss moves the chosen and the rejected responses, nats per token at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from dil_cli.dynamics.probe import FLOATS, INTEGERS

STEPS, PROBES, PAIRS = 50, (0, 12, 25, 38, 50), 256
EFFECTS = {
    "lsif": (-0.13, -0.25), "bce": (-0.22, -0.38), "ukl": (-0.20, -0.35), "dpo": (-0.41, -0.55),
    "simpo": (-0.54, -0.68), "slic": (-0.40, -0.57), "sft": (0.03, 0.04),
}  # fmt: skip
REDUCTIONS = {"dpo": "sum"}
SCHEMA = pyarrow.schema([(name, pyarrow.int64()) for name in INTEGERS] + [(name, pyarrow.float64()) for name in FLOATS])


def config_of(loss: str, seed: int, **changed: Any) -> dict[str, Any]:
    """A config in the shape of a run's; `changed` holds keys with `__` for the dot."""
    reduction = REDUCTIONS.get(loss, "mean")
    config: dict[str, Any] = {
        "name": f"tiny-gsm8k_pairs-{loss}", "seed": seed, "output": "outputs", "device": "auto",
        "model": {"path": "bundled:tiny", "lr": 3e-4},
        "data": {"path": "gsm8k_pairs", "label_noise": 0.0, "limit": None},
        "loss": {"name": loss, "reduction": reduction, **({"beta": 0.1} if loss == "dpo" else {"exp_cap": 30.0})},
        "optim": {"kind": "adamw", "lr": 3e-4, "batch_size": 32, "epochs": 1.0},
        "probe": {"pairs": PAIRS, "times": 4}, "tracker": {"mode": "auto", "tags": []},
    }  # fmt: skip
    for key, value in changed.items():
        *groups, leaf = key.split("__")
        node = config
        for group in groups:
            node = node[group]
        node[leaf] = value
    return config


def write_run(
    root: Path,
    loss: str = "lsif",
    seed: int = 0,
    *,
    effect: tuple[float, float] | None = None,
    between_seeds: float = 0.01,
    pairs: int = PAIRS,
    name: str | None = None,
    **changed: Any,
) -> Path:
    """A finished run; its folder's name ends with the hash of its config."""
    config = config_of(loss, seed, **changed)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    folder = root / (name or f"{config['name']}-{digest}")
    (folder / "probe").mkdir(parents=True)
    tables = _probe_tables(effect or EFFECTS[loss], seed, loss, between_seeds, pairs)
    for step, table in tables.items():
        pyarrow.parquet.write_table(
            pyarrow.Table.from_arrays([pyarrow.array(table[key]) for key in SCHEMA.names], schema=SCHEMA),
            folder / "probe" / f"step-{step:06d}.parquet",
        )
    rows = _rows(tables, config["loss"]["reduction"], seed)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "manifest.json").write_text(json.dumps(manifest_of(config, digest, pairs)))
    probe = [row for row in rows if "probe/logps/chosen" in row]
    result = {
        "name": config["name"], "hash": digest, "loss": loss, "reduction": config["loss"]["reduction"],
        "seed": seed, "steps": STEPS, "checkpoint": f"checkpoints/step-{STEPS:06d}", "start": probe[0],
        "end": probe[-1], "alarms": [], "train_seconds": 150.5,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def manifest_of(config: dict[str, Any], digest: str, pairs: int = PAIRS) -> dict[str, Any]:
    return {
        "hash": digest, "config": config, "device": "cpu", "compute": "fp32", "steps": STEPS,
        "environment": {
            "dil": "0.1.0", "git": "830ac73158c84e99f5ed4b896b1023542c18ce83", "python": "3.11.7",
            "platform": "Linux x86_64", "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
            "command": ["dil", "train"],
        },
        "model": {"source": "bundled:tiny", "weights_sha256": "c21b32ad293780c20ecb"},
        "data_sha256": "2284d05a58b83c0eca39", "probe_rows": list(range(pairs)),
    }  # fmt: skip


def write_sweep(folder: Path, jobs: list[tuple[list[str], Path]], **fields: Any) -> Path:
    """A sweep folder whose jobs' run folders are given, there or not."""
    folder.mkdir(parents=True)
    record = {
        "name": "noise", "hash": "1a2b3c4d", "question": None, "baseline": None, "x": None, "swept": [],
        "jobs": [
            {"index": i, "overrides": overrides, "hash": "", "folder": os.path.relpath(run, folder)}
            for i, (overrides, run) in enumerate(jobs)
        ],
    }  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(record | fields))
    return folder


def _probe_tables(
    effect: tuple[float, float], seed: int, loss: str, between_seeds: float, pairs: int
) -> dict[int, dict[str, np.ndarray]]:
    """The pairs are the same for every run, their changes follow the loss, the seed and the pair."""
    fixed = np.random.default_rng(0)
    tokens = {side: fixed.integers(20, 300, pairs) for side in ("chosen", "rejected")}
    start = {side: -tokens[side] * fixed.uniform(0.5, 1.1, pairs) for side in ("chosen", "rejected")}
    of_pair = {side: _centred(fixed.normal(0, 0.1, pairs)) for side in ("chosen", "rejected")}
    own = np.random.default_rng([seed, *loss.encode()])
    shift = own.normal(0, between_seeds)
    tables = {}
    for step in PROBES:
        part = step / STEPS
        delta = {
            side: part * (end + shift + of_pair[side] + own.normal(0, 0.02, pairs))
            for side, end in zip(("chosen", "rejected"), effect, strict=True)
        }
        table = {"step": np.full(pairs, step), "row": np.arange(pairs)}
        for side in ("chosen", "rejected"):
            table[f"{side}_tokens"] = tokens[side]
            table[f"{side}_logp_sum"] = start[side] + delta[side] * tokens[side]
            table[f"reference_{side}_sum"] = start[side]
            table[f"delta_{side}"] = delta[side]
        table["delta_margin"] = delta["chosen"] - delta["rejected"]
        tables[step] = table
    return tables


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


def _rows(tables: dict[int, dict[str, np.ndarray]], reduction: str, seed: int) -> list[dict[str, Any]]:
    own = np.random.default_rng([seed, 1])
    rows: list[dict[str, Any]] = []
    for step in range(STEPS + 1):
        if step:
            rows.append(
                {
                    "step": step, "loss": float(own.normal()), "grad_norm": float(own.uniform(1, 9)), "lr": 3e-4,
                    "logps/chosen": float(own.normal(-0.8, 0.1)), "logps/rejected": float(own.normal(-0.9, 0.1)),
                    "pairs_per_s": float(own.uniform(10, 15)), "memory_gb": 1.5 + step / 100,
                }
            )  # fmt: skip
        if step in tables:
            rows.append({"step": step, **_probe_row(tables[step], reduction)})
    return rows


def _probe_row(table: dict[str, np.ndarray], reduction: str) -> dict[str, Any]:
    s = {
        side: (table[f"{side}_logp_sum"] - table[f"reference_{side}_sum"])
        / (table[f"{side}_tokens"] if reduction == "mean" else 1)
        for side in ("chosen", "rejected")
    }
    margin = s["chosen"] - s["rejected"]
    at_start = not table["delta_chosen"].any()
    row: dict[str, Any] = {
        "accuracy": 0.5 if at_start else (margin > 0).mean(),
        "both_falling": ((table["delta_chosen"] < 0) & (table["delta_rejected"] < 0)).mean(),
        "loss": 0.5, "margin": margin.mean(),
    }  # fmt: skip
    for side in ("chosen", "rejected"):
        row[f"logps/{side}"] = (table[f"{side}_logp_sum"] / table[f"{side}_tokens"]).mean()
        row[f"delta/{side}"] = table[f"delta_{side}"].mean()
    row["delta/margin"] = table["delta_margin"].mean()
    if row["delta/margin"] >= 0.01:
        row["chosen_cost"] = -row["delta/chosen"] / row["delta/margin"]
    return {f"probe/{key}": float(value) for key, value in row.items()}
