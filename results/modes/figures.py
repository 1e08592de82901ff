"""The figures of the page."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from dil_cli.dynamics.style import GRID, LOSS_COLOURS, MUTED, PALETTE
from results.modes.preferred import BETAS, Preferred
from results.modes.restricted import REVERSE_KL, Bell
from results.modes.samples import FAMILIES, SEEDS, SIZES, Training
from results.modes.world import PROMPTS, World, kl, places

DPI = 100
ON_PREFERENCES = ("the chosen responses", "lsif", "bce", "ukl")
BELLS = (REVERSE_KL, "lsif", "sft", "bce", "dpo, beta 1")
LINES = ("sft", "dpo, beta 1", "dpo, beta 0.1", "lsif", "bce", "ukl", "lsif, both", "ukl, both", "lsif, mean")


def _colour(name: str) -> str:
    return PALETTE["purple"] if name == REVERSE_KL else LOSS_COLOURS[name.split(",")[0]]


def _dash(name: str) -> str:
    return "--" if name.endswith(("both", "beta 0.1")) else ":" if name.endswith("mean") else "-"


def _quiet(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def bells(world: World, rows: list[Bell], path: Path) -> None:
    """The best bell of each loss beside pi* and the reference, a prompt a panel; below, what training reaches."""
    figure, grid = plt.subplots(2, len(PROMPTS), figsize=(11, 5.6), sharex=True, sharey="row", layout="constrained")
    for x, prompt in enumerate(PROMPTS):
        for axes, words in zip(grid[:, x], ("best minimum", "from the reference"), strict=True):
            _quiet(axes)
            axes.fill_between(places(), world.optimum()[x].exp(), color=MUTED, alpha=0.3, linewidth=0, label="pi*")
            axes.plot(places(), world.reference_XY[x].exp(), color=MUTED, linestyle=":", label="reference")
            for row in sorted((row for row in rows if row.name in BELLS), key=lambda row: BELLS.index(row.name)):
                if row.prompt == x:
                    at_Y = row.best_Y if words == "best minimum" else row.trained_Y
                    label = "sft = ukl" if row.name == "sft" else row.name
                    dash = "--" if row.name == "dpo, beta 1" else "-"
                    axes.plot(places(), at_Y.exp(), color=_colour(row.name), linestyle=dash, linewidth=1.6, label=label)
            axes.set_title(f"{prompt.name}: {words}", fontsize=10)
            axes.set_ylim(0, 0.2)
    for axes in grid[:, 0]:
        axes.set_ylabel("probability")
    for axes in grid[1]:
        axes.set_xlabel("response")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def preferences(world: World, rows: list[Preferred], path: Path) -> None:
    """Which RLHF a loss is on preferences: KL to pi* over beta; and the policies themselves at one prompt."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    shown = [row for row in rows if row.scale == 1 and row.pairs == "pi_ref" and row.name in ON_PREFERENCES]
    right.fill_between(places(), world.optimum()[1].exp(), color=MUTED, alpha=0.3, linewidth=0, label="pi* (dpo)")
    right.plot(places(), world.reference_XY[1].exp(), color=MUTED, linestyle=":", label="reference")
    for row in shown:
        colour = PALETTE["orange"] if row.gradient is None and row.name != "lsif" else _colour(row.name)
        label = "chosen = any h, both" if row.name == "the chosen responses" else row.name
        distances = torch.stack([kl(row.policy_XY, world.optimum(float(beta))).mean() for beta in BETAS])
        left.plot(BETAS, distances.clamp(min=1e-4), color=colour, label=label)
        right.plot(places(), row.policy_XY[1].exp(), color=colour, label=label)
    left.set(xscale="log", yscale="log", ylim=(1e-3, 10), xlabel="beta of pi*", ylabel="KL(pi || pi*), nats")
    right.set(xlabel="response", ylabel="probability", title=PROMPTS[1].name)
    left.set_title("which beta a policy is closest to")
    for axes in (left, right):
        _quiet(axes)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def trainings(rows: list[Training], path: Path) -> None:
    """Chosen log-prob against margin along training, a family a row and a number of pairs a column."""
    figure, grid = plt.subplots(len(FAMILIES), len(SIZES), figsize=(11, 7), layout="constrained")
    for row in rows:
        axes = grid[list(FAMILIES).index(row.family), SIZES.index(row.size)]
        if row.name in LINES:
            margin_T, chosen_T = row.margin_ST.mean(dim=0), row.chosen_ST.mean(dim=0)
            axes.plot(margin_T, chosen_T, color=_colour(row.name), linestyle=_dash(row.name), label=row.name)
            axes.plot(margin_T[-1], chosen_T[-1], color=_colour(row.name), marker="o", markersize=4)
        axes.set(xlim=(0, 4), ylim=(-4, 1), title=f"{row.family}, {row.size} pairs")
        axes.axhline(0, color=MUTED, linewidth=0.8)
        _quiet(axes)
    for axes in grid[:, 0]:
        axes.set_ylabel("chosen log-prob, change in nats")
    for axes in grid[-1]:
        axes.set_xlabel(f"margin on the pairs trained on, nats (mean of {len(SEEDS)} seeds)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
