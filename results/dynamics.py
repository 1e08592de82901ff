"""Figure 2: the chosen likelihood under DIL, DPO and SimPO, each at its own best learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from dil_cli.dynamics.statistics import Float64
from dil_cli.report.record import Record
from results import arms, draw_dynamics, tables
from results.chain import Chain
from results.curves import chosen_by_length, per_response, ranked, reached, series, slopes
from results.grid import Arm
from results.page import Page

EXPERIMENT = "results/dynamics"
LENGTHS = 4
"""Parts of the held-out pairs, by length."""
BASELINE = arms.DPO
Course = Callable[[Record], Float64]
LEVELS: tuple[tuple[Course, float, Callable[[float], str]], ...] = (
    (partial(series, key="delta/margin"), 0.0, lambda level: f"margin {level:.2f}"),
    (ranked, 0.5, lambda level: f"accuracy {100 * level:.0f} %"),
)
"""At which chosen likelihoods are compared: of what, where it starts, and how a level of it is named."""


def page(
    name: str,
    question: str,
    compared: Sequence[Arm],
    rate: str | None = None,
    directions: bool = False,
    baselines: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    test: tuple[str, ...] = (),
) -> Page:
    """A page on the course of training.

    Args:
        name: of the page and its figure.
        question: it asks.
        compared: the arms.
        rate: one for all of them, instead of each one's own.
        directions: it also says where the losses push the weights.
        baselines: what the end of training is compared with, seed by seed, as `dil report --baseline` takes it.
        words: of all its runs.
        test: of its runs but those that choose the rates.
    """
    chains = tuple(Chain(arm, (EXPERIMENT,), words, rate, test) for arm in compared)

    def blocks() -> Mapping[str, str]:
        found = {chain.arm.label: chain.records() for chain in chains}
        made = {
            "cost": tables.cost(chains),
            "equal": equal(found),
            "final": tables.final([record for records in found.values() for record in records]),
            "lengths": length_table(found),
            "slopes": slope_table(found),
            "cells": tables.cells(chains),
        }
        if rate is None:
            made |= {"rates": tables.rate_table(chains), "validation": tables.validation_cells(chains)}
        if baselines:
            records = [record for of_arm in found.values() for record in of_arm]
            made["differences"] = "\n\n".join(tables.differences(records, baseline) for baseline in baselines)
        if directions:
            made["directions"] = direction_table(chains[0].records()[0])
        return made

    def draw(folder: Path) -> None:
        draw_dynamics.draw(name, {chain.arm: chain.records() for chain in chains}, folder)
        if rate is None:
            draw_dynamics.draw_rates(f"{name}_rates", {chain.arm: chain.rates() for chain in chains}, folder)

    return Page(name, question, chains, blocks, draw)


def equal(found: Mapping[str, Sequence[Record]]) -> str:
    """What each arm had lost of the chosen likelihood when it reached the same margin, or the same accuracy."""
    heads, columns, notes = [""], [list(found)], ["Mean over seeds and 95 % t interval."]
    for course, start, named in LEVELS:
        level = _level(found, course)
        if level <= start:
            notes.append(f"Not every run came above {named(start)}: there is no level to compare them at.")
            continue
        at = {label: _at(records, course, level) for label, records in found.items()}
        heads += [f"chosen at {named(level)}", f"less `{BASELINE.label}`"]
        columns.append([tables.interval(list(of_seed.values())) for of_seed in at.values()])
        early = [record for records in found.values() for record in records if course(record)[1] >= level]
        if early:
            notes.append(
                f"{len(early)} of {sum(map(len, found.values()))} runs had {named(level)} at their first measurement: "
                "there the number is read off the line from step 0, on which nothing was measured."
            )
        gaps = {label: tables.gap(of_seed, at[BASELINE.label]) for label, of_seed in at.items()}
        columns.append(["" if label == BASELINE.label else gap for label, gap in gaps.items()])
    if len(columns) > 1:
        notes.append(
            "Differences are paired by seed, bold where the interval excludes 0. Chosen: change since step 0 in nats "
            "per token, at the first crossing of the level, on straight lines between measurements; the levels are "
            "the highest that every run reached."
        )
    heads += ["chosen, whole response", "margin, whole response"]
    chosen, rejected = (
        {label: _at_end(records, side) for label, records in found.items()} for side in ("chosen", "rejected")
    )
    columns.append([tables.interval(list(chosen[label]), 1) for label in found])
    columns.append([tables.interval(list(chosen[label] - rejected[label]), 1) for label in found])
    notes.append("The last two columns are the end of training in nats per response.")
    return tables.rows(heads, list(zip(*columns, strict=True))) + f"\n\n{' '.join(notes)}"


def length_table(found: Mapping[str, Sequence[Record]]) -> str:
    """Change of the chosen likelihood per token at the end of training, by quarters of the responses' lengths."""
    by_label = {label: [chosen_by_length(record) for record in records] for label, records in found.items()}
    (tokens_P, _), *_ = by_label[next(iter(found))]
    heads = [f"{part[0]} to {part[-1]} tokens" for part in np.array_split(tokens_P, LENGTHS)]
    lines = []
    for label, runs in by_label.items():
        parts = [[part.mean() for part in np.array_split(change_P, LENGTHS)] for _, change_P in runs]
        lines.append([label, *(tables.interval(list(of_seed)) for of_seed in zip(*parts, strict=True))])
    return (
        tables.rows(["", *heads], lines)
        + "\n\nQuarters of the held-out pairs by the length of the chosen response, in "
        "the model's tokens. Mean over pairs; brackets: 95 % t interval over seeds."
    )


def slope_table(found: Mapping[str, Sequence[Record]]) -> str:
    """|dL/ds_l| : |dL/ds_w| in the first step, half way and in the last; of sums it differs by orders of magnitude."""
    lines = []
    for label, records in found.items():
        all_T = [slopes(record) for record in records]
        marks = [[values_T[at] for values_T in all_T] for at in (0, len(all_T[0]) // 2 - 1, -1)]
        lines.append([label, *map(_middle, marks)])
    steps = len(slopes(found[BASELINE.label][0]))
    table = tables.rows(["", "step 1", f"step {steps // 2}", f"step {steps}"], lines)
    return f"{table}\n\nMedian over seeds; brackets: the smallest and the largest."


def _middle(values: Sequence[float]) -> str:
    shown = [f"{value:.2f}" if value < 1000 else f"{value:.1e}" for value in (median(values), min(values), max(values))]
    return "{} [{}, {}]".format(*shown)


def direction_table(record: Record) -> str:
    """The cosine of each loss's gradient with that of lsif, before training and after a run."""
    from results.directions import cosines

    compared = (*arms.DIL, arms.DPO_MEAN, arms.SIMPO, arms.DPO, *arms.DIL_SUM)
    start, end = cosines(compared, record)
    lines = [[arm.label, f"{start[arm]:.3f}", f"{end[arm]:.3f}"] for arm in compared]
    return tables.rows(["", "policy = reference", f"after the run `{record.run.hash}`"], lines)


def _level(found: Mapping[str, Sequence[Record]], course: Course) -> float:
    """The highest hundredth that every run reached."""
    least = min(max(course(record)) for records in found.values() for record in records)
    return math.floor(100 * float(least)) / 100


def _at(records: Sequence[Record], course: Course, level: float) -> dict[int, float]:
    """The change of the chosen responses where each seed's run reached the level."""
    found = {r.run.seed: reached(course(r), series(r, "delta/chosen"), level) for r in records}
    return {seed: value for seed, value in found.items() if value is not None}


def _at_end(records: Sequence[Record], side: str) -> Float64:
    """Change of whole responses at the end of training, nats, (seeds,)."""
    return np.array([per_response(record, side)[-1] for record in records])
