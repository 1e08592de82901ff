"""A figure: all panels as one PNG and PDF, each panel by itself on the page, where a phone stacks them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dil_cli.dynamics import style
from dil_cli.dynamics.style import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH, HEIGHT = 4.1, 3.1
"""Inches of a panel; text of 9 points is then read on a phone as it is on paper."""

INK = {style.TEXT: "var(--ink)", style.MUTED: "var(--muted)", style.GRID: "var(--grid)", "#000000": "var(--ink)"}
"""Colours that follow the page, light or dark."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Axes of a figure: what to draw on them, and the same in words."""

    title: str
    draw: Callable[[Axes], None]
    alternative: str


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure of the report; `name` is its files'. `legend` holds the lines that its panels share.

    `left` is the room for the labels of the y axis, inches; with `same_rows` one picture shows them once a row.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    legend: Mapping[str, Line]
    columns: int = 3
    height: float = HEIGHT
    left: float = 0.78
    same_rows: bool = False

    def svg(self, at: int) -> str:
        """One panel as an inline SVG."""
        panel = self.panels[at]
        ident = f"{self.name}-{at + 1}"
        with _settings(ident):
            canvas = _canvas(WIDTH, self.height)
            axes = canvas.add_axes(_box(0, 0, WIDTH, self.height, self.left, WIDTH, self.height))
            _fill(axes, panel)
            out = io.StringIO()
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            canvas.savefig(out, format="svg", transparent=True, metadata=nothing)
        return _inline(out.getvalue(), ident, panel.alternative)

    def save(self, folder: Path, formats: tuple[str, ...]) -> None:
        """All panels with the legend, as `name.png` and `name.pdf`."""
        if not formats:
            return
        with _settings(self.name):
            canvas = self._picture()
            for ending in formats:
                canvas.savefig(folder / f"{self.name}.{ending}", format=ending, **_SAVED[ending])

    def _picture(self) -> Canvas:
        columns = min(self.columns, len(self.panels))
        rows = math.ceil(len(self.panels) / columns)
        per_row = max(1, int(columns * WIDTH / (0.75 + 0.075 * max(map(len, self.legend), default=0))))
        below = 0.15 + 0.22 * math.ceil(len(self.legend) / per_row)
        width, height = columns * WIDTH, rows * self.height + below
        canvas = _canvas(width, height)
        for i, panel in enumerate(self.panels):
            row, column = divmod(i, columns)
            labelled = column == 0 or not self.same_rows
            bottom = below + (rows - 1 - row) * self.height
            left = self.left if labelled else 0.3
            axes = canvas.add_axes(_box(column * WIDTH, bottom, WIDTH, self.height, left, width, height))
            _fill(axes, panel)
            if not labelled:
                axes.tick_params(labelleft=False)
        if self.legend:
            handles = _handles(self.legend)
            canvas.legend(handles=handles, loc="lower center", ncols=per_row, frameon=False, fontsize=9)
        return canvas


_SAVED: dict[str, dict[str, Any]] = {
    "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 4}},
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
}
"""No date and no version in a file: the same report has the same bytes."""


def swatch(line: Line) -> str:
    """A line of the legend as a small inline SVG."""
    names = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dash-dotted"}
    dashes = {
        "-": "",
        "--": ' stroke-dasharray="6 3"',
        ":": ' stroke-dasharray="2 2.5"',
        "-.": ' stroke-dasharray="7 2 2 2"',
    }
    colour = INK.get(line.colour, line.colour)
    return (
        f'<svg class="swatch" role="img" aria-label="{names[line.dash]} line, {_MARKER_NAMES[line.marker]}" '
        f'viewBox="0 0 34 12" width="34" height="12">'
        f'<path d="M1 6H33" stroke="{colour}" stroke-width="2" fill="none"{dashes[line.dash]}/>'
        f'<g fill="{colour}" transform="translate(17 6)">{_MARKER_SHAPES[line.marker]}</g></svg>'
    )


def _canvas(width: float, height: float) -> Canvas:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), dpi=150)
    FigureCanvasAgg(canvas)
    return canvas


def _settings(salt: str) -> AbstractContextManager[None]:
    """Whatever the user's own matplotlib settings are, a report comes out the same."""
    import matplotlib

    defaults: Any = matplotlib.rcParamsDefault
    chosen: dict[str, Any] = {key: value for key, value in defaults.items() if not key.startswith("backend")}
    chosen |= {
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        "text.parse_math": False,
        "pdf.fonttype": 42,
        "font.size": 9,
    }
    chosen |= {"axes.edgecolor": style.MUTED, "text.color": style.TEXT, "axes.labelcolor": style.TEXT}
    context: AbstractContextManager[None] = matplotlib.rc_context(chosen)  # type: ignore[arg-type]
    return context


def _box(
    x: float, y: float, width: float, height: float, left: float, all_width: float, all_height: float
) -> tuple[float, float, float, float]:
    """Axes of a panel at (x, y), inches, as parts of the picture."""
    right, below, above = 0.14, 0.5, 0.38
    return (
        (x + left) / all_width, (y + below) / all_height,
        (width - left - right) / all_width, (height - below - above) / all_height,
    )  # fmt: skip


def _fill(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", fontsize=9.5, color=style.TEXT, pad=7)
    axes.grid(axis="y", color=style.GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5, colors=style.MUTED)
    panel.draw(axes)


def _handles(legend: Mapping[str, Line]) -> list[Any]:
    from matplotlib.lines import Line2D

    looks: dict[str, dict[str, Any]] = {
        name: {"color": line.colour, "linestyle": line.dash, "marker": line.marker} for name, line in legend.items()
    }
    return [Line2D([], [], markersize=4.5, label=name, **look) for name, look in looks.items()]


def _inline(svg: str, ident: str, alternative: str) -> str:
    """A matplotlib SVG as part of a page: ids of its own, colours that follow the page, a text that stands for it."""
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{ident}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{ident}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{ident}-\1"', svg)
    svg = re.sub(r"font: ([^;']*?)(\d[\d.]*px) [^;\"]*", r"font: \1\2 system-ui, sans-serif", svg)
    for colour, follows in INK.items():
        svg = re.sub(f"{colour}\\b", follows, svg, flags=re.IGNORECASE)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if size is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    head = (
        f'<svg class="panel" role="img" aria-labelledby="{ident}-text" viewBox="{size.group(0)[9:-1]}">'
        f'<title id="{ident}-text">{escape(alternative)}</title>'
    )
    return head + re.sub(r"\n\s*", "\n", svg[svg.index(">") + 1 :]).strip()


_MARKER_NAMES = {
    "o": "circle", "s": "square", "^": "triangle up", "D": "diamond", "v": "triangle down", "P": "plus", "X": "cross",
    "<": "triangle left", ">": "triangle right", "p": "pentagon", "h": "hexagon", "d": "narrow diamond",
}  # fmt: skip
_MARKER_SHAPES = {
    "o": '<circle r="3.2"/>',
    "s": '<path d="M-3-3H3V3H-3Z"/>',
    "^": '<path d="M0-4L3.8 3H-3.8Z"/>',
    "D": '<path d="M0-4.2L4.2 0 0 4.2-4.2 0Z"/>',
    "v": '<path d="M0 4L3.8-3H-3.8Z"/>',
    "P": '<path d="M-1.4-4H1.4V-1.4H4V1.4H1.4V4H-1.4V1.4H-4V-1.4H-1.4Z"/>',
    "X": '<path d="M-1.4-4H1.4V-1.4H4V1.4H1.4V4H-1.4V1.4H-4V-1.4H-1.4Z" transform="rotate(45)"/>',
    "<": '<path d="M-4 0L3-3.8V3.8Z"/>',
    ">": '<path d="M4 0L-3-3.8V3.8Z"/>',
    "p": '<path d="M0-4L3.8-1.2 2.4 3.2H-2.4L-3.8-1.2Z"/>',
    "h": '<path d="M0-4L3.5-2V2L0 4-3.5 2V-2Z"/>',
    "d": '<path d="M0-4.4L2.6 0 0 4.4-2.6 0Z"/>',
}
