"""The figure of the page on figure 2. N measurements, S seeds, T steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dil_cli.dynamics import style
from dil_cli.dynamics.statistics import Float64
from dil_cli.dynamics.style import Line, series_lines
from dil_cli.report.figure import Figure, Panel
from dil_cli.report.panels import scale_by_decades, steps_panel
from dil_cli.report.record import Record
from results.curves import costs, ranked, series, slopes
from results.grid import Arm
from results.rates import Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCURACY = "accuracy per token"

FLOOR = -0.7
"""Nats per token below which the figure of the rates is cut."""

NAMED = {"lsif": (5, 3), "dpo": (-4, -12), "simpo": (6, -3)}
"""Arms whose rates are written, and where: those of bce and ukl lie on lsif's."""

CLOSE = -0.03
"""Nats per token above which the rates lie too close to be named."""

Found = Mapping[str, Sequence[Record]]


def draw(name: str, arms: Mapping[Arm, Sequence[Record]], folder: Path) -> None:
    """NAME.png: the course of training, and what it costs."""
    looks = series_lines([(arm.loss, arm.label) for arm in arms])
    found = {arm.label: records for arm, records in arms.items()}
    probes = {label: [record.probe for record in records] for label, records in found.items()}
    panels = [
        steps_panel(key, f"{name}, over training", probes, looks)
        for key, name in (("delta/chosen", "Chosen"), ("delta/rejected", "Rejected"), ("delta/margin", "Margin"))
    ]
    panels += [
        Panel("Chosen, against the margin", partial(_against_margin, found=found, looks=looks), ""),
        Panel("chosen_cost, against the margin", partial(_cost, found=found, looks=looks), ""),
        Panel("Push on rejected : pull on chosen", partial(_slopes, found=found, looks=looks), ""),
    ]
    Figure(name, "", "", tuple(panels), looks).save(folder, ("png",))


def draw_rates(name: str, arms: Mapping[Arm, Sequence[Rate]], folder: Path) -> None:
    """NAME.png: where each learning rate ends, on the validation questions."""
    looks = series_lines([(arm.loss, arm.label) for arm in arms])
    found = {arm.label: rates for arm, rates in arms.items()}
    panels = [
        Panel(title, partial(_rates, found=found, looks=looks, key=key), "")
        for title, key in (
            ("Chosen, against the margin: one point a rate", "delta/margin"),
            ("Chosen, against accuracy: one point a rate", ACCURACY),
        )
    ]
    Figure(name, "", "", tuple(panels), looks).save(folder, ("png",))


def _rates(axes: Axes, found: Mapping[str, Sequence[Rate]], looks: Mapping[str, Line], key: str) -> None:
    for label, rates in found.items():
        y = np.array([rate.end("delta/chosen") for rate in rates])
        x = np.array([100 * ranked(rate.record)[-1] if key == ACCURACY else rate.end(key) for rate in rates])
        _line(axes, x, y, looks[label])
        if label in NAMED:
            for rate, at_x, at_y in zip(rates, x, y, strict=True):
                if FLOOR < at_y < CLOSE:
                    axes.annotate(
                        f"x{rate.factor:g}", (at_x, at_y), NAMED[label], textcoords="offset points", fontsize=7,
                        color=looks[label].colour,
                    )  # fmt: skip
    axes.axhline(0, color=style.MUTED, linewidth=0.8)
    # A loss that falls apart at a high rate would press the others together.
    axes.set_ylim(bottom=max(axes.get_ylim()[0], FLOOR))
    axes.set_xlabel(
        "validation accuracy per token, %" if key == ACCURACY else "margin gained, nats per token", fontsize=9
    )
    axes.set_ylabel("change of chosen, nats per token", fontsize=9)


def _against_margin(axes: Axes, found: Found, looks: Mapping[str, Line]) -> None:
    for label, records in found.items():
        margin_N, chosen_N = (_mean(records, key) for key in ("delta/margin", "delta/chosen"))
        _line(axes, margin_N, chosen_N, looks[label])
    axes.axhline(0, color=style.MUTED, linewidth=0.8)
    axes.set_xlabel("margin gained, nats per token", fontsize=9)
    axes.set_ylabel("change of chosen, nats per token", fontsize=9)


def _cost(axes: Axes, found: Found, looks: Mapping[str, Line]) -> None:
    for label, records in found.items():
        margin_N = _mean(records, "delta/margin")
        _line(axes, margin_N, costs(_mean(records, "delta/chosen"), margin_N), looks[label])
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_xlabel("margin gained, nats per token", fontsize=9)
    axes.set_ylabel("chosen lost per margin gained", fontsize=9)


def _slopes(axes: Axes, found: Found, looks: Mapping[str, Line]) -> None:
    middles = {label: np.median([slopes(record) for record in records], axis=0) for label, records in found.items()}
    for label, ratio_T in middles.items():
        _line(axes, np.arange(1, len(ratio_T) + 1, dtype=np.float64), ratio_T, looks[label])
    axes.axhline(1, color=style.MUTED, linewidth=0.8)
    scale_by_decades(axes, np.concatenate(list(middles.values())))
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
    axes.set_xlabel("optimiser step", fontsize=9)
    axes.set_ylabel("|dL/ds_l| : |dL/ds_w|", fontsize=9)


def _mean(records: Sequence[Record], key: str) -> Float64:
    values_N: Float64 = np.mean([series(record, key) for record in records], axis=0)
    return values_N


def _line(axes: Axes, x: Float64, y: Float64, line: Line) -> None:
    axes.plot(x, y, color=line.colour, linestyle=line.dash, marker=line.marker, linewidth=1.5, markersize=4)
