"""The page on the small model itself: what it was trained on, how its loss fell. N measurements, T steps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.config.compose import compose
from dil_cli.dynamics import style
from dil_cli.dynamics.statistics import Float64
from dil_cli.dynamics.style import Line
from dil_cli.models.load import load_policy
from dil_cli.report.figure import Figure, Panel
from dil_cli.report.record import Record, read_record, read_rows
from dil_cli.report.runs import read_run
from recipes.heldout import heldout_losses
from recipes.make_small import MODEL, RUN, TEXTS
from results import tables
from results.grid import NotRun
from results.page import Page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORDS = ("model=local", f"model.path={MODEL}", "model.lr=3e-4")
"""Of the runs that start from it."""

GSM8K = {"`gsm8k`": ("data=gsm8k",), "`gsm8k_pairs`": ("data=gsm8k_pairs",)}
OWN = {"its own texts": ("data=local", f"data.path={TEXTS}", "data.heldout_split=test", "data.heldout_fraction=null")}
TRAINING = 3300.0
"""Seconds of its training on 2 cores: 6.3 million tokens at 1,900 a second."""
SMOOTHED = 20
"""Steps over which the training loss is averaged."""

LOOKS = {
    "training, mean of 20 steps": Line(style.PALETTE["blue"], "-", ""),
    "held out": Line(style.PALETTE["orange"], "-", "o"),
}


def make() -> None:
    """What `make small` does, where it was not done."""
    if not MODEL.is_dir():
        code = subprocess.run([sys.executable, "-m", "recipes.make_small"]).returncode
        if code:
            sys.exit(code)


def blocks() -> Mapping[str, str]:
    """Every made block of the page."""
    record = _record()
    return {"model": _facts(record), "losses": loss_table()}


def loss_table() -> str:
    """Held-out responses under it and under the tiny model; their tokens differ, so nats are given per byte too."""
    lines = []
    for label, path, data in (("tiny", "bundled:tiny", GSM8K), ("small", str(MODEL), {**GSM8K, **OWN})):
        policy = load_policy(compose("train", ["model=local", f"model.path={path}", "model.lr=1"]).model)
        for name, words in data.items():
            for found in heldout_losses(policy.model, policy.tokenizer, words):
                side = f", {found.side}" if "gsm8k_pairs" in name else ""
                numbers = [f"{found.responses:,}", f"{found.per_token:.3f}", f"{found.per_byte:.3f}"]
                lines.append([label, name + side, *numbers])
    return tables.rows(["model", "held-out responses", "number", "nats per token", "nats per byte"], lines, text=2)


def draw(folder: Path) -> None:
    """small.png: its loss against the tokens it has seen."""
    record = _record()
    panel = Panel("All tokens of the texts, nats per token", partial(_losses, record=record), "")
    Figure("small", "", "", (panel,), LOOKS).save(folder, ("png",))


def _record() -> Record:
    if not (RUN / "result.json").is_file():
        raise NotRun("the small model is missing: make small DATA=DIR")
    return read_record(read_run(RUN))


def _manifest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RunFolder(RUN).manifest.read_text(encoding="utf-8"))
    return found


def _million_tokens() -> float:
    """Over all epochs."""
    manifest = _manifest()
    return float(manifest["config"]["optim"]["epochs"] * manifest["tokens"]["train"]["tokens"] / 1e6)


def _facts(record: Record) -> str:
    result = record.run.result or {}
    parameters, hours = _manifest()["model"]["parameters"], float(result["train_seconds"]) / 3600
    return (
        f"{parameters:,} parameters; {_million_tokens():.1f} million tokens in {result['steps']:,} steps, "
        f"{hours:.1f} hours. Run `{record.run.hash}`."
    )


def _losses(axes: Axes, record: Record) -> None:
    seen = _million_tokens() / (record.run.result or {})["steps"]
    rows = [row for row in read_rows(RunFolder(RUN).metrics) if "loss" in row]
    steps_T, loss_T = (np.array([row[key] for row in rows], dtype=np.float64) for key in ("step", "loss"))
    smooth_T: Float64 = np.convolve(loss_T, np.full(SMOOTHED, 1 / SMOOTHED), "valid")
    steps_N = np.array([row["step"] for row in record.probe], dtype=np.float64)
    held_N = -np.array([row["probe/logps/chosen"] for row in record.probe], dtype=np.float64)
    curves = ((steps_T[SMOOTHED - 1 :], smooth_T), (steps_N[1:], held_N[1:]))
    for line, (x, y) in zip(LOOKS.values(), curves, strict=True):
        axes.plot(seen * x, y, color=line.colour, linestyle=line.dash, marker=line.marker, linewidth=1.5, markersize=4)
    axes.set_xlabel("million tokens", fontsize=9)
    axes.set_ylabel("nats per token", fontsize=9)


PAGE = Page("small", "What is the small model?", (), blocks, draw, prepare=make, measuring=lambda: TRAINING)
