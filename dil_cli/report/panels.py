"""The report's figures, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dil_cli.dynamics import style
from dil_cli.dynamics.statistics import Float64
from dil_cli.dynamics.style import Line
from dil_cli.report.curves import Curve, lost_by_length, over_steps, over_x, shares
from dil_cli.report.estimates import BY_KEY, METRICS, Metric, estimate, seed_values
from dil_cli.report.experiment import Experiment, Group, short
from dil_cli.report.figure import Figure, Panel
from dil_cli.report.numerics import gradient_curve, guard_curve
from dil_cli.report.series import Setting, along_x, lines, settings, shown
from dil_cli.report.tables import MINUS, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP_SETTINGS, PAIR_SETTINGS = 4, 2
"""Settings that get axes of their own in a figure."""

MANY = 8
"""Series of one panel beyond which those that have no colour of their own stand back."""

FEW = 6
"""Values on an x axis that are all written there."""

NAMED = 6
"""Series that an alternative text names with their numbers; the table has all of them."""

STEPS = {
    "delta/chosen": "Chosen responses",
    "delta/rejected": "Rejected responses",
    "delta/margin": "Margin",
}


def figures(experiment: Experiment) -> list[Figure]:
    """Every figure for which there are numbers, in the order of the page."""
    looks = lines(experiment)
    every = settings(experiment)
    found = [_dynamics(experiment, every, looks), _dots(experiment, looks), _pairs(every, looks)]
    across = _across(experiment, looks)
    return [*found, *([across] if across is not None else []), _numerics(every, looks)]


def _dynamics(experiment: Experiment, every: list[Setting], looks: Mapping[str, Line]) -> Figure:
    chosen = shown(every, STEP_SETTINGS)
    panels = []
    for setting in chosen:
        for metric, name in STEPS.items():
            probes = {label: [record.probe for record in group.records] for label, group in setting.groups}
            panels.append(steps_panel(metric, _titled(name, setting), probes, looks))
    several = {len(group.records) for group in experiment.groups}
    spread = "One seed a line." if several == {1} else (
        "Line: mean over the seeds; band: 95 % t interval from three seeds on, thin lines: each of two seeds."
    )  # fmt: skip
    return Figure(
        "dynamics",
        "Likelihood of held-out responses over training",
        f"Change of the mean log-prob since step 0, nats per token, on the probe set. {spread}"
        f"{_left_out(every, chosen)}",
        tuple(panels),
        _legend(chosen, looks),
    )


def steps_panel(
    metric: str, title: str, probes: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], looks: Mapping[str, Line]
) -> Panel:
    """One metric over the steps; `probes` holds the probe rows of each seed of each series."""
    curves = {label: curve for label, seeds in probes.items() if (curve := over_steps(seeds, metric)) is not None}
    ends = {label: float(curve.mean_N[-1]) for label, curve in curves.items()}
    words = _in_words(STEPS[metric], "after the last step", ends, BY_KEY[metric])
    return Panel(title, partial(_draw_steps, curves=curves, looks=looks), words)


def _dots(experiment: Experiment, looks: Mapping[str, Line]) -> Figure:
    named = {id(group): label for setting in settings(experiment) for label, group in setting.groups}
    rows = [(group.label, group, looks[named[id(group)]]) for group in experiment.groups]
    panels = []
    for metric in METRICS:
        ends = {label: kept.mean for label, group, _ in rows if (kept := estimate(group, metric)) is not None}
        if ends:
            draw = partial(_draw_dots, rows=rows, metric=metric)
            panels.append(Panel(metric.label, draw, _in_words(metric.meaning, "at the end", ends, metric)))
    longest = max(len(label) for label, _, _ in rows)
    return Figure(
        "final",
        "Final numbers: every seed, mean and interval",
        "Small dots: seeds. Large mark and bar: mean and the interval of the table above.",
        tuple(panels),
        {},
        columns=4,
        height=0.95 + 0.2 * max(len(rows), 4),
        same_rows=True,
        left=min(0.25 + 0.075 * longest, 2.4),
    )


def _pairs(every: list[Setting], looks: Mapping[str, Line]) -> Figure:
    chosen = shown(every, PAIR_SETTINGS)
    panels = []
    for setting in chosen:
        for column, name in (("chosen", "Chosen: pairs below a change"), ("margin", "Margin: pairs below a change")):
            spread = {label: found for label, group in setting.groups if (found := shares(group, column)) is not None}
            below = {label: float(np.interp(0, values, share)) for label, (values, share) in spread.items()}
            words = _in_words(
                f"{column}: share of pairs with a change below 0", "at the end", below, BY_KEY["both_falling"]
            )
            panels.append(Panel(_titled(name, setting), partial(_draw_shares, spread=spread, looks=looks), words))
        lost = {label: lost_by_length(group) for label, group in setting.groups}
        longest = {label: float(share[-1]) for label, (_, share) in lost.items()}
        words = _in_words(
            "Share of pairs that lost chosen likelihood, by length",
            "in the longest quarter",
            longest,
            BY_KEY["both_falling"],
        )
        panels.append(
            Panel(
                _titled("Lost chosen, by length", setting),
                partial(_draw_lost, lost=lost, looks=looks),
                words,
            )
        )
    return Figure(
        "pairs",
        "The change pair by pair",
        "Left and middle: share of probe pairs whose change since step 0 lies below the value on the x axis, all seeds "
        "together; where a line crosses 0 it shows the share that lost. Right: share of pairs whose chosen response "
        f"became less likely, by quartile of its length in tokens.{_left_out(every, chosen)}",
        tuple(panels),
        _legend(chosen, looks),
    )


def _across(experiment: Experiment, looks: Mapping[str, Line]) -> Figure | None:
    series = along_x(experiment)
    if experiment.x is None or not series:
        return None
    name = short(experiment.x)
    panels = []
    for metric in METRICS:
        curves = {label: curve for label, points in series.items() if (curve := over_x(points, metric)) is not None}
        if curves:
            ends = {label: float(curve.mean_N[-1]) for label, curve in curves.items()}
            last = max(float(curve.x_N[-1]) for curve in curves.values())
            draw = partial(_draw_across, curves=curves, looks=looks, name=experiment.x, metric=metric)
            panels.append(
                Panel(
                    f"{metric.label} over {name}", draw, _in_words(metric.meaning, f"at {name} {last:g}", ends, metric)
                )
            )
    legend = {label: looks[label] for label in series}
    caption = f"Final held-out metrics over {experiment.x}, with the intervals of the table."
    return Figure("across", f"Final numbers over {name}", caption, tuple(panels), legend, columns=4)


def _numerics(every: list[Setting], looks: Mapping[str, Line]) -> Figure:
    chosen = shown(every, PAIR_SETTINGS)
    panels = []
    for setting in chosen:
        norms = _present({label: gradient_curve(group) for label, group in setting.groups})
        ends = {label: f"{curve.mean_N[-1]:.3g}" for label, curve in norms.items()}
        draw = partial(_draw_numerics, curves=norms, looks=looks, name="gradient norm before clipping", scale="log")
        panels.append(Panel(_titled("Gradient norm", setting), draw, _said("Gradient norm at the last step", ends)))
        shares = _present({label: guard_curve(group) for label, group in setting.groups})
        if any(curve.mean_N.any() for curve in shares.values()):
            ends = {label: f"{100 * curve.mean_N.mean():.1f} %" for label, curve in shares.items()}
            draw = partial(_draw_numerics, curves=shares, looks=looks, name="% of the batch", scale="percent")
            panels.append(Panel(_titled("Guard acted", setting), draw, _said("Share of pairs, mean over steps", ends)))
    return Figure(
        "numerics",
        "Guard and gradient over training",
        f"Mean over the seeds; of many steps the mean of neighbours.{_left_out(every, chosen)}",
        tuple(panels),
        _legend(chosen, looks),
    )


def _present(curves: Mapping[str, Curve | None]) -> dict[str, Curve]:
    return {label: curve for label, curve in curves.items() if curve is not None}


def _draw_numerics(axes: Axes, curves: Mapping[str, Curve], looks: Mapping[str, Line], name: str, scale: str) -> None:
    for label, curve in curves.items():
        values_N = 100 * curve.mean_N if scale == "percent" else curve.mean_N
        _plot(axes, curve.x_N, values_N, looks[label], width=1.3, size=3, every=max(1, len(values_N) // 10))
    positive = [curve.mean_N[curve.mean_N > 0] for curve in curves.values()]
    if scale == "log" and any(map(len, positive)):
        scale_by_decades(axes, np.concatenate(positive))
    axes.set_xlabel("optimiser step", fontsize=9)
    axes.set_ylabel(name, fontsize=9)
    axes.locator_params(axis="x", integer=True, nbins=6)


def scale_by_decades(axes: Axes, values_N: Float64) -> None:
    """A log scale where the values span a decade; its labels are plain numbers, since the SVG has no mathtext."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    span = values_N.max() / values_N.min()
    if span < 10:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter(FuncFormatter(_plain) if span < 100 else NullFormatter())


def _plain(value: float, _: float) -> str:
    return f"{value:g}".replace("e+", "e")


def _draw_steps(axes: Axes, curves: Mapping[str, Curve], looks: Mapping[str, Line]) -> None:
    axes.axhline(0, color=style.MUTED, linewidth=0.8)
    many = len(curves) > MANY
    for label, curve in curves.items():
        line = looks[label]
        behind = many and label not in style.LOSS_COLOURS
        if curve.low_N is not None and curve.high_N is not None:
            axes.fill_between(curve.x_N, curve.low_N, curve.high_N, color=line.colour, alpha=0.15, linewidth=0)
        for each in curve.each:
            axes.plot(curve.x_N, each, color=line.colour, linewidth=0.7, alpha=0.6)
        _plot(axes, curve.x_N, curve.mean_N, line, width=0.9 if behind else 1.7, size=3 if behind else 4, behind=behind)
    axes.set_xlabel("optimiser step", fontsize=9)
    axes.set_ylabel("change, nats per token", fontsize=9)
    axes.locator_params(axis="x", integer=True, nbins=6)


def _draw_dots(axes: Axes, rows: Sequence[tuple[str, Group, Line]], metric: Metric) -> None:
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=style.GRID, linewidth=0.7)
    scale = 100 if metric.percent else 1
    if metric.key.startswith("delta/"):
        axes.axvline(0, color=style.MUTED, linewidth=0.8)
    found = [
        (height, group, line, kept) for height, (_, group, line) in enumerate(rows) if (kept := estimate(group, metric))
    ]
    # One call for all bars and one for all seeds: a call each took most of the time of a large report.
    bars = [(height, kept.interval.low, kept.interval.high, line.colour) for height, _, line, kept in found]
    whole = [(h, scale * low, scale * high, c) for h, low, high, c in bars if low is not None and high is not None]
    if whole:
        heights, lows, highs, colours = zip(*whole, strict=True)
        axes.hlines(heights, lows, highs, colors=colours, linewidth=1.6)
    seeds = [
        (scale * value, height, line.colour)
        for height, group, line, _ in found
        if len(group.records) > 1
        for value in seed_values(group, metric).values()
    ]
    if seeds:
        values, heights, colours = zip(*seeds, strict=True)
        axes.scatter(values, heights, s=8, c=colours, alpha=0.6, linewidths=0)
    for marker in dict.fromkeys(line.marker for _, _, line, _ in found):
        marked = [(scale * kept.mean, height, line.colour) for height, _, line, kept in found if line.marker == marker]
        means, heights, colours = zip(*marked, strict=True)
        axes.scatter(means, heights, s=28, c=colours, marker=marker, linewidths=0, zorder=3)
    axes.set_yticks(
        range(len(rows)), [label if len(label) < 30 else f"{label[:28]}\N{HORIZONTAL ELLIPSIS}" for label, _, _ in rows]
    )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(
        "% of pairs" if metric.percent else "nats per nat" if metric.key == "chosen_cost" else "nats per token",
        fontsize=9,
    )


def _draw_shares(axes: Axes, spread: Mapping[str, tuple[Float64, Float64]], looks: Mapping[str, Line]) -> None:
    axes.axvline(0, color=style.MUTED, linewidth=0.8)
    lows, highs = [], []
    for label, (values, share) in spread.items():
        behind = len(spread) > MANY and label not in style.LOSS_COLOURS
        _plot(axes, values, 100 * share, looks[label], width=0.9 if behind else 1.5, every=20, behind=behind)
        lows.append(float(values[2]))
        highs.append(float(values[-3]))
    if lows:  # without the outermost pairs, which would press the rest together
        room = 0.05 * (max(highs) - min(lows)) or 0.01
        axes.set_xlim(min(*lows, 0.0) - room, max(*highs, 0.0) + room)
    axes.set_xlabel("change, nats per token", fontsize=9)
    axes.set_ylabel("% of pairs below", fontsize=9)


def _draw_lost(axes: Axes, lost: Mapping[str, tuple[list[str], Float64]], looks: Mapping[str, Line]) -> None:
    ranges: list[str] = []
    for label, (found, share) in lost.items():
        ranges = max(ranges, found, key=len)
        behind = len(lost) > MANY and label not in style.LOSS_COLOURS
        x = np.arange(len(share), dtype=np.float64)
        _plot(axes, x, 100 * share, looks[label], width=0.9 if behind else 1.5, behind=behind)
    axes.set_xticks(range(len(ranges)), ranges)
    axes.set_xlim(-0.35, len(ranges) - 0.65)
    axes.set_ylim(-4, 104)
    axes.set_xlabel("tokens of the chosen response", fontsize=9)
    axes.set_ylabel("% of pairs", fontsize=9)


def _draw_across(axes: Axes, curves: Mapping[str, Curve], looks: Mapping[str, Line], name: str, metric: Metric) -> None:
    scale = 100 if metric.percent else 1
    xs = sorted({float(x) for curve in curves.values() for x in curve.x_N})
    logarithmic = xs[0] > 0 and (short(name) == "lr" or xs[-1] / xs[0] >= 8)
    if logarithmic:
        axes.set_xscale("log")
    if logarithmic or len(xs) <= FEW:
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.set_xticks([], minor=True)
    if metric.key.startswith("delta/"):
        axes.axhline(0, color=style.MUTED, linewidth=0.8)
    for i, (label, curve) in enumerate(curves.items()):
        line = looks[label]
        if curve.low_N is not None and curve.high_N is not None:
            # Shifted a little, or the bars of several series hide each other.
            shift = (i - (len(curves) - 1) / 2) * 0.012
            x_N = curve.x_N * (xs[-1] / xs[0]) ** shift if logarithmic else curve.x_N + shift * (xs[-1] - xs[0])
            axes.vlines(x_N, scale * curve.low_N, scale * curve.high_N, color=line.colour, linewidth=1.2, alpha=0.8)
        else:
            x_N = curve.x_N
        _plot(axes, x_N, scale * curve.mean_N, line, width=1.5, size=4.5)
    axes.set_xlabel(name, fontsize=9)
    axes.set_ylabel(
        "% of pairs" if metric.percent else "nats per nat" if metric.key == "chosen_cost" else "nats per token",
        fontsize=9,
    )


def _plot(
    axes: Axes, x: Float64, y: Float64, line: Line, width: float, size: float = 4, every: int = 1, behind: bool = False
) -> None:
    axes.plot(
        x, y, color=line.colour, linestyle=line.dash, linewidth=width, marker=line.marker, markersize=size,
        markevery=every, alpha=0.65 if behind else 1.0, zorder=2 if behind else 3,
    )  # fmt: skip


def _titled(name: str, setting: Setting) -> str:
    return f"{name}, {setting.title}" if setting.title else name


def _legend(chosen: Sequence[Setting], looks: Mapping[str, Line]) -> dict[str, Line]:
    return {label: looks[label] for setting in chosen for label, _ in setting.groups}


def _left_out(every: Sequence[Setting], drawn: Sequence[Setting]) -> str:
    return "" if len(drawn) == len(every) else f" {len(drawn)} of {len(every)} settings are drawn; the table has all."


def _in_words(what: str, where: str, values: Mapping[str, float], metric: Metric) -> str:
    """`what where: lsif -0.129, dpo -0.407 and 3 more`."""
    return _said(f"{what} {where}", {label: number(value, metric) for label, value in values.items()})


def _said(what: str, values: Mapping[str, str]) -> str:
    if not values:
        return f"{what}: no numbers"
    named = [f"{label} {value}" for label, value in list(values.items())[:NAMED]]
    more = f" and {len(values) - NAMED} more, in the table" if len(values) > NAMED else ""
    return f"{what}: {', '.join(named)}{more}".replace(MINUS, "-")
