"""The picture of a run: chosen and rejected likelihood over training, and the margin gained.

N probe measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dil_cli.dynamics import style
from dil_cli.dynamics.statistics import Float64
from dil_cli.errors import DilError
from dil_cli.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Side:
    """Likelihood of one kind of response, nats per token, (N,) each.

    `value` is its mean, `change` the mean since step 0, `low` and `high` the first and last decile
    of the per-pair change.
    """

    value: Float64
    change: Float64
    low: Float64
    high: Float64


@dataclass(frozen=True, eq=False)
class Curves:
    """Exactly what `plot_dynamics` draws; `rejected` and `margin` are None for demonstrations.

    `margin` (N,) is the change of chosen minus rejected since step 0; `cost` is the last `chosen_cost`.
    """

    step_N: np.ndarray
    chosen: Side
    rejected: Side | None
    margin_N: Float64 | None
    cost: float | None


def dynamics_curves(rows: Sequence[Mapping[str, Any]]) -> Curves:
    """The curves in the rows of `metrics.jsonl`; rows without probe metrics are passed over.

    Raises:
        DilError: when no row holds a probe measurement.
    """
    probe = [row for row in rows if row.get("probe/logps/chosen") is not None]
    if not probe:
        raise DilError("the record holds no probe measurement, so there is nothing to draw", fix="dil train")
    paired = "probe/logps/rejected" in probe[0]
    return Curves(
        step_N=np.array([row["step"] for row in probe], dtype=np.int64),
        chosen=_side(probe, "chosen"),
        rejected=_side(probe, "rejected") if paired else None,
        margin_N=_column(probe, "delta/margin") if paired else None,
        cost=probe[-1].get("probe/chosen_cost"),
    )


def plot_dynamics(curves: Curves, path: Path, title: str) -> None:
    """Write `draw_dynamics` as a PNG of 1500 x 600 pixels; `path` is whole or as it was before."""
    figure = draw_dynamics(curves, title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def draw_dynamics(curves: Curves, title: str) -> Figure:
    """The picture: likelihoods on the left, margin on the right, every line a field of `curves`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    figure.subplots_adjust(left=0.075, right=0.9, bottom=0.135, top=0.78, wspace=0.52)
    heading = figure.text(0.016, 0.945, title, fontsize=12, fontweight="bold", color=style.TEXT, va="center")
    heading.set_parse_math(False)  # a run may be called `a$b$`
    for axes in (left, right):
        axes.margins(y=0.1)
    _draw_likelihoods(left, curves)
    _draw_gain(right, curves)
    for axes in (left, right):
        _dress(axes, int(curves.step_N[-1]))
    return figure


def _side(probe: Sequence[Mapping[str, Any]], name: str) -> Side:
    return Side(
        value=_column(probe, f"logps/{name}"),
        change=_column(probe, f"delta/{name}"),
        low=_column(probe, f"delta/{name}/p10"),
        high=_column(probe, f"delta/{name}/p90"),
    )


def _column(probe: Sequence[Mapping[str, Any]], key: str) -> Float64:
    """One metric over the measurements; what a row does not hold is NaN, a change at step 0 is 0."""
    values = [row.get(f"probe/{key}") for row in probe]
    if values[0] is None and probe[0]["step"] == 0 and key.startswith("delta/"):
        values[0] = 0.0
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _draw_likelihoods(axes: Axes, curves: Curves) -> None:
    """Mean log-prob per token, in a band that shows how far single pairs moved."""
    axes.set_title("Log-likelihood of held-out responses", **_TITLE)
    axes.set_ylabel("mean log-prob per token (nats)")
    sides = [("chosen", curves.chosen, style.CHOSEN)]
    if curves.rejected is not None:
        sides.append(("rejected", curves.rejected, style.REJECTED))
    labels = []
    for name, side, colour in sides:
        start = side.value[0]
        axes.fill_between(curves.step_N, start + side.low, start + side.high, color=colour, alpha=0.1, linewidth=0)
        for edge in (side.low, side.high):
            axes.plot(curves.step_N, start + edge, color=colour, alpha=0.4, linewidth=0.7, zorder=1)
        axes.plot(curves.step_N, side.value, color=colour, **_LINE)
        labels.append((float(side.value[-1]), f"{name}\n{_signed(side.change[-1])}", colour))
    _label_ends(axes, labels)
    _explain(axes, "number: mean change since step 0; band: middle 80 % of pairs")


def _draw_gain(axes: Axes, curves: Curves) -> None:
    """The margin gained and what it cost; for demonstrations, the likelihood gained."""
    axes.set_ylabel("change since step 0 (nats per token)")
    axes.axhline(0, color=style.MUTED, linewidth=0.8)
    if curves.margin_N is None:
        axes.set_title("Likelihood gained since step 0", **_TITLE)
        gain_N, name, colour = curves.chosen.change, "chosen", style.CHOSEN
    else:
        axes.set_title("Margin gained: chosen minus rejected", **_TITLE)
        gain_N, name, colour = curves.margin_N, "margin", style.MARGIN
        if curves.cost is not None:
            cost = f"{curves.cost:.2f}".replace("-", "\N{MINUS SIGN}")
            _explain(axes, f"chosen_cost {cost}: nats of chosen lost per nat of margin")
    axes.plot(curves.step_N, gain_N, color=colour, **_LINE)
    _label_ends(axes, [(float(gain_N[-1]), f"{name}\n{_signed(gain_N[-1])}", colour)])


def _explain(axes: Axes, text: str) -> None:
    axes.text(0, 1.035, text, transform=axes.transAxes, fontsize=8.5, color=style.MUTED, va="bottom")


def _label_ends(axes: Axes, labels: list[tuple[float, str, str]]) -> None:
    """Name each line at its right end, labels kept apart; (height, text, colour) each."""
    low, high = axes.get_ylim()
    apart = 0.16 * (high - low)
    heights = [height for height, _, _ in labels]
    if len(heights) == 2 and abs(heights[0] - heights[1]) < apart:
        centre = sum(heights) / 2
        up = 0.5 if heights[0] >= heights[1] else -0.5
        heights = [centre + up * apart, centre - up * apart]
    for height, (_, text, colour) in zip(heights, labels, strict=True):
        axes.annotate(
            text, xy=(1, height), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", color=colour, fontsize=9.5, fontweight="bold", va="center",
            linespacing=1.15, annotation_clip=False,
        )  # fmt: skip


def _dress(axes: Axes, last_step: int) -> None:
    axes.set_xlabel("optimiser step")
    axes.set_xlim(0, max(last_step, 1))
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", color=style.GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=style.MUTED)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


_LINE: dict[str, Any] = {"linewidth": 2, "marker": "o", "markersize": 3.5, "clip_on": False, "zorder": 3}
_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10.5, "color": style.TEXT, "pad": 22}
