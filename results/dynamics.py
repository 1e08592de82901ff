"""Figure 2: the chosen likelihood under DIL, DPO and SimPO, each at its own best learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dil_cli.dynamics.statistics import Float64
from dil_cli.report.record import Record
from results import arms, draw_dynamics, tables
from results.chain import Chain
from results.curves import per_response, reached, series, slopes
from results.grid import Arm
from results.page import Page

EXPERIMENT = "results/dynamics"
BASELINE = arms.DPO


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
    margin = _level(found, "delta/margin", 0.01)
    accuracy = _level(found, "accuracy", 0.01)
    at_margin = {label: _at(records, "delta/margin", margin) for label, records in found.items()}
    at_accuracy = {label: _at(records, "accuracy", accuracy) for label, records in found.items()}
    lines = [
        [
            label,
            tables.interval(list(at_margin[label].values())),
            tables.gap(at_margin[label], at_margin[BASELINE.label]) if label != BASELINE.label else "",
            tables.interval(list(at_accuracy[label].values())),
            tables.gap(at_accuracy[label], at_accuracy[BASELINE.label]) if label != BASELINE.label else "",
            tables.interval([_end(per_response(r, "chosen")) for r in found[label]], 1),
            tables.interval([_end(per_response(r, "chosen") - per_response(r, "rejected")) for r in found[label]], 1),
        ]
        for label in found
    ]
    heads = [
        "", f"chosen at margin {margin:.2f}", f"less `{BASELINE.label}`", f"chosen at accuracy {100 * accuracy:.0f} %",
        f"less `{BASELINE.label}`", "chosen, whole response", "margin, whole response",
    ]  # fmt: skip
    return tables.rows(heads, lines) + (
        "\n\nMean over seeds and 95 % t interval; differences are paired by seed, bold where the interval excludes 0. "
        "Chosen and margin: change since step 0 in nats per token, at the first crossing of the level, on straight "
        "lines between measurements; the levels are the highest that every run reached. The last two columns are the "
        "end of training in nats per response."
    )


def slope_table(found: Mapping[str, Sequence[Record]]) -> str:
    """|dL/ds_l| : |dL/ds_w| in the first step, half way and in the last."""
    lines = []
    for label, records in found.items():
        all_T = [slopes(record) for record in records]
        marks = [[values_T[at] for values_T in all_T] for at in (0, len(all_T[0]) // 2 - 1, -1)]
        lines.append([label, *(tables.interval(values, 2, sign=False) for values in marks)])
    steps = len(slopes(found[BASELINE.label][0]))
    return tables.rows(["", "step 1", f"step {steps // 2}", f"step {steps}"], lines)


def direction_table(record: Record) -> str:
    """The cosine of each loss's gradient with that of lsif, before training and after a run."""
    from results.directions import cosines

    compared = (*arms.DIL, arms.DPO_MEAN, arms.SIMPO, arms.DPO, *arms.DIL_SUM)
    start, end = cosines(compared, record)
    lines = [[arm.label, f"{start[arm]:.3f}", f"{end[arm]:.3f}"] for arm in compared]
    return tables.rows(["", "policy = reference", f"after the run `{record.run.hash}`"], lines)


def _level(found: Mapping[str, Sequence[Record]], key: str, step: float) -> float:
    """The highest multiple of `step` that every run reached."""
    least = min(max(series(record, key)) for records in found.values() for record in records)
    return float(least // step * step)


def _at(records: Sequence[Record], key: str, level: float) -> dict[int, float]:
    """The change of the chosen responses where each seed's run reached the level."""
    found = {r.run.seed: reached(series(r, key), series(r, "delta/chosen"), level) for r in records}
    return {seed: value for seed, value in found.items() if value is not None}


def _end(values_N: Float64) -> float:
    return float(values_N[-1])
