"""Colours of every figure: the Okabe-Ito palette, told apart by colour-blind readers and in print."""

from __future__ import annotations

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
