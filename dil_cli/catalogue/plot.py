"""How hard losses pull the chosen and push the rejected response: |dL/ds_w| and |dL/ds_l| along their log-ratios.

G points of a curve. A loss on sums that has a beta is drawn against beta s, any other against its own s (nats per
token under the mean): the scale on which its authors choose it. Weights are relative to the larger of the loss's own
two at policy = reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dil_cli.dynamics import style
from dil_cli.errors import DilError
from dil_cli.files import replacing
from dil_cli.losses import PreferenceLoss, Reduction, loss_class
from dil_cli.types import PairLogps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REACH = 4.0
"""Curves run from -REACH to REACH; the margin to 2 REACH."""
REFERENCE_LOGP = -1.0
"""Log-prob per token of both responses under the reference, which losses without a reference feel."""
OTHERS = 31
"""Pairs at policy = reference in whose company a pair of a batch-coupled loss is drawn."""
MOST = 9
"""Losses in one figure: colours to tell apart, names in one line."""
RATIOS = (0.1, 1e3)
"""Lower and upper end of the third panel."""
BENEATH = ((0, (5, 5)), (0, (2.5, 7.5)), (0, (1.2, 8.8)))
"""Dashes of a second, third and fourth curve in one place, through which the others are seen."""
THICK, THIN = 2.2, 1.0
"""Widths of a curve, and of its part beyond a loss's target."""
LONG_SHARED = 0.4
"""Share of its points that a curve has in common with another one to be dashed over it."""


@dataclass(frozen=True)
class Weights:
    """Relative weights (G,) of one loss along a path of (s_w, s_l): -dL/ds_w and dL/ds_l.

    Negative where the loss moves a response the other way, as beyond a target of its own.
    """

    pull_G: Tensor
    push_G: Tensor


def plot_losses(names: Sequence[str], path: Path) -> Path:
    """Draw the losses with their default settings into `path`, whole or not at all; returns it.

    Raises:
        DilError: for too many losses, or one that has no defaults to be drawn with.
    """
    once = list(dict.fromkeys(names))
    if len(once) > MOST:
        what = f"a figure shows at most {MOST} losses, not {len(once)}"
        raise DilError(what, f"dil losses --plot {','.join(names)}", f"dil losses --plot {','.join(once[:MOST])}")
    figure = draw_losses([_with_defaults(name) for name in once])
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix.removeprefix(".")
    # Without a date or a version in it, the same picture is the same file.
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, metadata=metadata)
    return path


def draw_losses(losses: Sequence[PreferenceLoss]) -> Figure:
    """Three panels: the pull along s_w, the push along s_l, and the pull per push as the rejected response sinks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.3), dpi=150)
    FigureCanvasAgg(figure)
    pull, push, ratio = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.055, right=0.985, bottom=0.26, top=0.79, wspace=0.24)
    path_G = torch.linspace(-REACH, REACH, 161, dtype=torch.float64)
    margin_G = torch.linspace(0, 2 * REACH, 161, dtype=torch.float64)
    still_G = torch.zeros_like(path_G)
    looks = style.loss_styles([loss.name for loss in losses])
    for loss in losses:
        colour, dash = looks[loss.name]
        _draw(pull, path_G, weights(loss, path_G, still_G).pull_G, colour, dash)
        _draw(push, path_G, weights(loss, still_G, path_G).push_G, colour, dash)
        sinking = weights(loss, still_G, -margin_G)
        shown_G = (sinking.pull_G / sinking.push_G).where(sinking.push_G != 0, torch.nan)
        _draw(ratio, margin_G, shown_G, colour, dash)
    _dress(pull, "Pull on the chosen response", r"$|\partial L / \partial s_w|$, relative", "chosen log-ratio $s_w$")
    _dress(
        push, "Push on the rejected response", r"$|\partial L / \partial s_l|$, relative", "rejected log-ratio $s_l$"
    )
    quotient = r"$|\partial L / \partial s_w|\;/\;|\partial L / \partial s_l|$"
    _dress(ratio, "Pull per push as the rejected response sinks", quotient, "margin $s_w - s_l$, with $s_w = 0$")
    for axes in (pull, push):
        axes.set_xlim(-REACH, REACH)
        axes.set_ylim(0, 3)
        axes.axvline(0, color=style.MUTED, linewidth=0.8, zorder=1)
    ratio.set_xlim(0, 2 * REACH)
    ratio.set_yscale("log")
    ratio.set_ylim(*RATIOS)
    ratio.axhline(1, color=style.MUTED, linewidth=0.8, zorder=1)
    _explain(pull, "$s_l = 0$; 1 is the weight at policy = reference")
    _explain(push, "$s_w = 0$; on the left, how the push fades as the response sinks")
    _explain(ratio, "at 1 a pair is solved as well by sinking both responses")
    figure.legend(
        *_handles(looks), loc="lower center", ncols=len(losses), frameon=False, fontsize=9.5,
        labelcolor=style.TEXT, handlelength=2.6, bbox_to_anchor=(0.5, 0.04),
    )  # fmt: skip
    note = "s in nats per token for losses on means, times beta for losses on sums; default settings"
    if any(line.get_linewidth() == THIN for axes in (pull, push, ratio) for line in axes.get_lines()):
        note += "; thin: there the loss moves the response the other way"
    figure.text(0.5, 0.02, note, ha="center", fontsize=8.5, color=style.MUTED)
    figure.text(0.012, 0.93, "How hard losses pull and push", fontsize=12, fontweight="bold", color=style.TEXT)
    return figure


def _with_defaults(name: str) -> PreferenceLoss:
    try:
        return loss_class(name)()
    except (DilError, TypeError) as error:
        what = f"{name} has no default settings, with which a loss is drawn"
        raise DilError(what, f"dil losses --plot {name}", "name losses that have them") from error


def _draw(axes: Axes, x_G: Tensor, y_G: Tensor, colour: str, dash: str) -> None:
    """The size of `y_G` as a curve; dashed where it lies on one that is drawn already, so that both are seen.

    Where `y_G` is negative the curve is thin.
    """
    size_G, turned_G = y_G.abs(), y_G < -1e-9
    drawn = [torch.as_tensor(line.get_ydata()) for line in axes.get_lines()]
    shared = [float(torch.isclose(size_G, other_G, rtol=0.01, atol=0.01).double().mean()) for other_G in drawn]
    alike = sum(share > LONG_SHARED for share in shared)
    look: Any = BENEATH[min(alike, len(BENEATH)) - 1] if alike else dash
    axes.plot(x_G, size_G.where(~turned_G, torch.nan), color=colour, linestyle=look, linewidth=THICK)
    if turned_G.any():
        axes.plot(x_G, size_G.where(turned_G, torch.nan), color=colour, linestyle=look, linewidth=THIN)


def _handles(looks: dict[str, tuple[str, str]]) -> tuple[list[Any], list[str]]:
    """Lines and labels of the legend."""
    from matplotlib.lines import Line2D

    looked: Any = looks.values()
    return [Line2D([], [], color=colour, linestyle=dash, linewidth=THICK) for colour, dash in looked], [*looks]


def weights(loss: PreferenceLoss, x_w_G: Tensor, x_l_G: Tensor) -> Weights:
    """The weights of a loss where its two responses stand at `x_w_G` and `x_l_G` on its own scale."""
    scale = 1 / getattr(loss, "beta", 1.0) if loss.reduction == Reduction.sum else 1.0
    zero_1 = torch.zeros(1, dtype=torch.float64)
    start = torch.stack(_slopes(loss, zero_1, zero_1)).abs().max()
    pull_G, push_G = _slopes(loss, x_w_G * scale, x_l_G * scale)
    return Weights(-pull_G / start, push_G / start)


def _slopes(loss: PreferenceLoss, s_w_G: Tensor, s_l_G: Tensor) -> tuple[Tensor, Tensor]:
    """dL/ds_w and dL/ds_l (G,), each pair for itself, or each among `OTHERS` if the loss couples a batch."""
    if loss.couples_batch and len(s_w_G) > 1:
        ones = [_slopes(loss, s_w_G[i : i + 1], s_l_G[i : i + 1]) for i in range(len(s_w_G))]
        return torch.cat([one[0] for one in ones]), torch.cat([one[1] for one in ones])
    others = torch.zeros(OTHERS if loss.couples_batch else 0, dtype=torch.float64)
    s_w_B = torch.cat([s_w_G, others]).requires_grad_()
    s_l_B = torch.cat([s_l_G, others]).requires_grad_()
    reference_B = torch.full_like(s_w_B, REFERENCE_LOGP, requires_grad=False)
    one_B = torch.ones_like(reference_B, dtype=torch.long)
    pairs = PairLogps(
        policy_chosen_B=reference_B + s_w_B,
        policy_rejected_B=reference_B + s_l_B,
        chosen_tokens_B=one_B,
        rejected_tokens_B=one_B,
        reference_chosen_B=reference_B,
        reference_rejected_B=reference_B,
    )
    slopes = torch.autograd.grad(loss(pairs).loss_B.sum(), [s_w_B, s_l_B], materialize_grads=True)
    return slopes[0][: len(s_w_G)], slopes[1][: len(s_w_G)]


def _dress(axes: Axes, title: str, y: str, x: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=style.TEXT, pad=20)
    axes.set_ylabel(y, fontsize=9)
    axes.set_xlabel(x, fontsize=9)
    axes.grid(color=style.GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=style.MUTED)


def _explain(axes: Axes, text: str) -> None:
    axes.text(0, 1.035, text, transform=axes.transAxes, fontsize=8.2, color=style.MUTED, va="bottom")
