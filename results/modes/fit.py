"""Policies by their parameters, and minima by exact gradients in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from results.modes.world import World, bell, places, start

Policy = Callable[[Tensor], Tensor]
"""From parameters to log pi, (X, Y)."""

COSINES = 6


def table(world: World) -> tuple[Policy, Tensor]:
    """A logit for each response, normalised: every policy is in it. With the parameters of the reference."""
    return lambda logits_XY: logits_XY.log_softmax(dim=1), world.reference_XY.clone()


def free(world: World) -> tuple[Policy, Tensor]:
    """A log-ratio for each response without normalisation: not a policy, but what the theory of ratios speaks of."""
    return lambda logits_XY: logits_XY, world.reference_XY.clone()


def smooth(world: World) -> tuple[Policy, Tensor]:
    """The reference tilted by a few slow cosines, (X, K) weights: responses share parameters, as a model's do."""
    waves_KY = torch.cos(math.pi * torch.arange(1, COSINES + 1)[:, None] * places())
    weights_XK = torch.zeros(len(world.reference_XY), COSINES, dtype=torch.float64)
    return lambda weights_XK: (world.reference_XY + weights_XK @ waves_KY).log_softmax(dim=1), weights_XK


def unimodal(prompt: int) -> tuple[Policy, Tensor]:
    """A bell for one prompt, by its centre and the logarithm of its width, (1, 2). The reference is one of them."""
    centre_X, width_X = start()
    first = torch.stack([centre_X, width_X.log()], dim=1)[prompt : prompt + 1]
    return lambda bell_X2: bell(bell_X2[:, 0], bell_X2[:, 1].exp()), first


NEWTON_STEPS = 100
HALVINGS = 8
LONGEST = 1.0


@dataclass(frozen=True)
class Fit:
    """A minimum: log pi, (X, Y), the value there, and the largest component of the gradient."""

    policy_XY: Tensor
    value: float
    gradient: float


def minimise(objective: Callable[[Tensor], Tensor], policy: Policy, first: Tensor) -> Fit:
    """A minimum near `first`, by Newton's steps downhill; `objective` takes log pi, (X, Y)."""
    at = first
    value, slope, step = _newton(objective, policy, at)
    for _ in range(NEWTON_STEPS):
        # Values agree in all their digits long before parameters do; from there the gradient has to shrink.
        noise = 1e-13 * abs(value)
        for further in (at + step / 2**halvings for halvings in range(HALVINGS)):
            with torch.no_grad():
                descends = float(objective(policy(further))) < value - noise
            if descends:
                break
        else:
            further = at + step
        further_value, further_slope, further_step = _newton(objective, policy, further)
        if not descends and not float(further_slope.abs().max()) < float(slope.abs().max()):
            break
        at, value, slope, step = further, further_value, further_slope, further_step
    return Fit(policy(at), value, float(slope.abs().max()))


def _newton(objective: Callable[[Tensor], Tensor], policy: Policy, at: Tensor) -> tuple[float, Tensor, Tensor]:
    """Value, gradient and step: downhill also where the objective curves down, and of at most `LONGEST` a component.

    Directions without curvature, the constants of normalised logits, stay as they are.
    """
    leaf = at.clone().requires_grad_()
    value = objective(policy(leaf))
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    unit = torch.eye(slope.numel(), dtype=slope.dtype).reshape(-1, *slope.shape)
    (rows,) = torch.autograd.grad(slope, leaf, unit, is_grads_batched=True)
    curvature, direction = torch.linalg.eigh(rows.flatten(1))
    held = curvature.abs() > 1e-13 * curvature.abs().max()
    along = torch.where(held, direction.T @ slope.detach().flatten() / curvature.abs(), 0)
    step = -(direction @ along).reshape(at.shape)
    return float(value.detach()), slope.detach(), step * min(1.0, LONGEST / float(step.abs().max()))


def descend(
    objective: Callable[[Tensor], Tensor], policy: Policy, first: Tensor, steps: int, rate: float
) -> Iterator[Tensor]:
    """Log pi (X, Y) before each of Adam's small steps and after the last: the way that training takes."""
    parameters = first.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameters], lr=rate)
    for _ in range(steps):
        policy_XY = policy(parameters)
        yield policy_XY.detach()
        optimiser.zero_grad()
        objective(policy_XY).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    yield policy(parameters).detach()
