"""Pages that compare arms by the report's own tables and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from dil_cli.report.experiment import Experiment, arrange
from dil_cli.report.panels import figures
from dil_cli.report.record import Record
from dil_cli.report.sweep import Sweep
from dil_cli.report.tables import difference_table, final_table
from results import tables
from results.chain import Chain
from results.page import Page


def page(
    name: str,
    question: str,
    chains: Sequence[Chain],
    baseline: str,
    x: str | None = None,
    same_rate: str | None = None,
) -> Page:
    """A page with the table of final numbers, that of paired differences, and one figure.

    Args:
        name: of the page and its figure.
        question: it asks.
        chains: it is made of.
        baseline: what the others are compared with, as `dil report --baseline` takes it.
        x: the key along which curves are drawn; without one the figure shows every seed.
        same_rate: at which the arms are compared once more, since their own rates differ.
    """
    beside = [dataclasses.replace(chain, rate=same_rate) for chain in chains] if same_rate else []

    def blocks() -> Mapping[str, str]:
        experiment = arranged([record for chain in chains for record in chain.records()], baseline, x)
        made = {
            "cost": tables.cost([*chains, *beside]),
            "rates": tables.rate_table(chains),
            "final": tables.made(final_table(experiment)),
            "differences": tables.made(difference_table(experiment)),
            "cells": tables.cells([*chains, *beside]),
            "validation": tables.validation_cells(chains),
        }
        if beside:
            records = [record for chain in beside for record in chain.records()]
            made["same_rate"] = f"{tables.final(records)}\n\n{tables.differences(records, baseline)}"
        return made

    def draw(folder: Path) -> None:
        experiment = arranged([record for chain in chains for record in chain.records()], baseline, x)
        wanted = "across" if x else "final"
        (figure,) = (figure for figure in figures(experiment) if figure.name == wanted)
        dataclasses.replace(figure, name=name).save(folder, ("png",))

    return Page(name, question, (*chains, *beside), blocks, draw)


def arranged(records: Sequence[Record], baseline: str, x: str | None) -> Experiment:
    """The records as the report groups them."""
    told = Sweep(Path(), "", "", None, None, x, () if x is None else (x,), ())
    return arrange(records, [told], baseline)
