"""Colours of every figure: the Okabe-Ito palette, told apart by colour-blind readers and in print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

PALETTE = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
    "grey": "#7F7F7F",
}

CHOSEN, REJECTED, MARGIN = PALETTE["blue"], PALETTE["vermillion"], PALETTE["green"]
TEXT, MUTED, GRID = "#222222", "#666666", "#DDDDDD"

LOSS_COLOURS = {
    "lsif": PALETTE["blue"],
    "bce": PALETTE["green"],
    "ukl": PALETTE["sky"],
    "dpo": PALETTE["vermillion"],
    "simpo": PALETTE["orange"],
    "slic": PALETTE["purple"],
    "sft": PALETTE["black"],
}
"""One colour per loss, the same in every figure; a loss that is not listed is grey."""

DASHES = ("-", "--", ":", "-.")


def loss_styles(losses: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dash of each loss in one figure.

    A loss in `LOSS_COLOURS` keeps its colour and a solid line; the others take colours that are free in this figure,
    then all of them again, dashed.
    """
    taken = [LOSS_COLOURS[loss] for loss in losses if loss in LOSS_COLOURS]
    free = [(colour, "-") for colour in PALETTE.values() if colour not in taken]
    free += [(colour, dash) for dash in DASHES[1:] for colour in PALETTE.values()]
    others = cycle(free)
    return {loss: (LOSS_COLOURS[loss], "-") if loss in LOSS_COLOURS else next(others) for loss in dict.fromkeys(losses)}


MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")


@dataclass(frozen=True)
class Line:
    """How one series is drawn: by dash and marker, too, it is told from the others where print is grey."""

    colour: str
    dash: str
    marker: str


def series_lines(series: Sequence[tuple[str, str]]) -> dict[str, Line]:
    """The line of each series of a report, (loss, label) each.

    Series of one loss share its colour and differ by dash and marker, the first of them is drawn as the loss always is.
    """
    base = loss_styles([loss for loss, _ in series])
    seen: Counter[str] = Counter()
    lines: dict[str, Line] = {}
    for i, (loss, label) in enumerate(dict.fromkeys(series)):
        colour, dash = base[loss]
        own = list(LOSS_COLOURS).index(loss) if loss in LOSS_COLOURS and not seen[loss] else i
        lines[label] = Line(
            colour, DASHES[(DASHES.index(dash) + seen[loss]) % len(DASHES)], MARKERS[own % len(MARKERS)]
        )
        seen[loss] += 1
    return lines
