"""Bregman, the wider DIL family: a loss derived from any convex h that you name or write.

r = pi(y|x) / pi_ref(y|x), s = log r. Loss, gradient and `reference_samples=both` follow from h as in
`density_ratio.py`. A function of your own is a Python function of a tensor under `@convex`:

    @convex
    def pearson(r):
        return (r - 1) ** 2
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dil_cli.errors import DilError
from dil_cli.losses.bregman import Brier, Jeffreys, Power
from dil_cli.losses.common import (
    Reduction,
    ReferenceSamples,
    beyond_cap,
    log_ratios,
    mean_over,
    reference_log_ratios,
    require_exp_cap,
)
from dil_cli.losses.density_ratio import BCE, LSIF, UKL
from dil_cli.losses.protocol import PreferenceLoss
from dil_cli.losses.registry import register
from dil_cli.types import LossOutput, PairLogps

ConvexFunction = Callable[[Tensor], Tensor]

FUNCTIONS: dict[str, ConvexFunction] = {}
"""Functions of the user's own by name, as `@convex` enters them."""

CLOSED_FORMS: dict[str, Callable[..., PreferenceLoss]] = {
    "lsif": LSIF,
    "bce": BCE,
    "ukl": UKL,
    "hellinger": partial(Power, alpha=-0.5),
    "itakura_saito": partial(Power, alpha=-1.0),
    "jeffreys": Jeffreys,
    "brier": Brier,
}
"""h whose loss is known in log space, where no ratio has to be formed."""

GRID = torch.linspace(-5, 5, 41, dtype=torch.float64).exp()
"""Ratios from 0.007 to 148 at which a function must turn out convex."""


def convex(function: ConvexFunction) -> ConvexFunction:
    """Decorator: `loss=bregman loss.h=NAME` finds the function under its own name.

    Args:
        function: takes ratios r > 0 as a float64 tensor of any shape and returns h(r) in that shape, made of
            torch operations that can be differentiated twice.

    Raises:
        DilError: when the name is taken by a known h, or the function is not convex.
    """
    name = getattr(function, "__name__", "")
    if name in CLOSED_FORMS:
        raise DilError(f"h={name} is known already", where=f"{function.__module__}.{name}", fix="give it another name")
    _check_convex(function, f"@convex {name}")
    FUNCTIONS[name] = function
    return function


@register
@dataclass(kw_only=True)
class Bregman:
    """Bregman divergence of any convex h: h'(r_l) r_l - h(r_l) - h'(r_w).

    r = e^s is the ratio pi/pi_ref of the chosen (w) and the rejected (l) response, s in nats per token (`mean`,
    the default) or per response (`sum`). h is the name of a function: lsif, bce, ukl, hellinger, itakura_saito,
    jeffreys and brier are computed in log space by their own losses (whose constant they keep); one of your own
    stands under `@convex` in a Python file (docs/custom_loss.md), and in Python h may be the function itself. That
    one is computed in float64 with derivatives by autograd. exp_cap is the exponent of the known ones' guard; for
    a function of your own both terms continue along their tangent where |s| is above exp_cap / 2. Null turns it off.

    Gradient: dL/ds_w = -h''(r_w) r_w and dL/ds_l = h''(r_l) r_l^2. The curvature of h alone says how the pull and
    the push grow and fade; both are equal, h''(1), where policy = reference.

    Ranges: any h with h'' >= 0; adding a linear function to h changes nothing but a constant.

    Neighbours: lsif, ukl, bce, power, jeffreys and brier are this loss with their own h.

    Source: arXiv 2503.05079, the general form.
    """

    name: ClassVar[str] = "bregman"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False

    h: Any = "lsif"
    reduction: Reduction = Reduction.mean
    exp_cap: float | None = 30.0
    reference_samples: ReferenceSamples = ReferenceSamples.rejected

    def __post_init__(self) -> None:
        require_exp_cap(self.exp_cap)
        if callable(self.h):
            _check_convex(self.h, "loss.h")
        elif self.h not in {*CLOSED_FORMS, *FUNCTIONS}:
            known = sorted({*CLOSED_FORMS, *FUNCTIONS})
            near = difflib.get_close_matches(str(self.h), known, n=1)
            raise DilError(
                f"no convex function is named {self.h!r}; there are {', '.join(known)}",
                where="loss.h",
                fix=f"loss.h={near[0]}" if near else "a function of your own: docs/custom_loss.md",
            )

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,), and where a term was beyond its guard."""
        closed = self._closed_form()
        if closed is not None:
            return closed(pair)
        h = self.h if callable(self.h) else FUNCTIONS[self.h]
        bound = self.exp_cap and self.exp_cap / 2
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        samples = reference_log_ratios(s_w_B, s_l_B, self.reference_samples)
        pull_B, _ = _terms(h, s_w_B, bound)
        push_B = mean_over([_terms(h, s_B, bound)[1] for s_B in samples])
        return LossOutput(push_B - pull_B, beyond_cap(bound, s_w_B.abs(), *(s_B.abs() for s_B in samples)))

    def at_reference(self) -> float | None:
        """-h(1), or the value of the known loss."""
        closed = self._closed_form()
        if closed is not None:
            return closed.at_reference()
        h = self.h if callable(self.h) else FUNCTIONS[self.h]
        return -float(h(torch.ones(1, dtype=torch.float64)))

    def _closed_form(self) -> PreferenceLoss | None:
        if callable(self.h) or self.h not in CLOSED_FORMS:
            return None
        build = CLOSED_FORMS[self.h]
        guard = {} if self.h in {"bce", "brier"} else {"exp_cap": self.exp_cap}
        return build(reduction=self.reduction, reference_samples=self.reference_samples, **guard)


def _terms(h: ConvexFunction, s_B: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    """h'(r) and h'(r) r - h(r) at r = e^s, (B,) each, on their tangents where |s| > bound.

    Value and slope are worked out in float64 on the CPU, since not every device has float64; the result has the
    type and device of `s_B`.
    """
    exact_B = s_B.cpu().double()
    inside_B = exact_B.detach() if bound is None else exact_B.detach().clamp(-bound, bound)
    r_B = inside_B.exp()
    h_B, first_B, second_B = _derivatives(h, r_B)
    # Linear in s about a point that carries no gradient: inside the bound the distance is 0 and only the slope acts.
    distance_B = exact_B - inside_B
    pull_B = first_B + second_B * r_B * distance_B
    push_B = first_B * r_B - h_B + second_B * r_B.square() * distance_B
    return pull_B.to(s_B), push_B.to(s_B)


def _derivatives(h: ConvexFunction, r_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h, h' and h'' at r_B, detached."""
    with torch.enable_grad():
        leaf_B = r_B.clone().requires_grad_()
        h_B = h(leaf_B)
        (first_B,) = torch.autograd.grad(h_B.sum(), leaf_B, create_graph=True)
        second_B = torch.zeros_like(first_B)
        if first_B.requires_grad:
            (second_B,) = torch.autograd.grad(first_B.sum(), leaf_B, materialize_grads=True)
    return h_B.detach(), first_B.detach(), second_B.detach()


def _check_convex(h: ConvexFunction, where: str) -> None:
    """Refuse a function that fails, has another shape, or curves downwards on `GRID`."""
    try:
        h_G, _, second_G = _derivatives(h, GRID)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DilError(f"h cannot be differentiated twice: {reason}", where, "use torch operations on r") from error
    if h_G.shape != GRID.shape:
        raise DilError(f"h returns the shape {tuple(h_G.shape)} for {tuple(GRID.shape)}", where, "one h(r) per r")
    bad_G = ~((second_G >= -1e-9 * second_G.abs().max()) & h_G.isfinite() & second_G.isfinite())
    if bad_G.any() or not second_G.any():
        at = int(bad_G.float().argmax())
        raise DilError(
            f"h is not convex: h''({float(GRID[at]):.3g}) = {float(second_G[at]):.3g}",
            where,
            "a function of r with h'' above 0",
        )
