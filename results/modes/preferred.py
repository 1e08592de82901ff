"""Bradley-Terry pairs, the data that the paper trains on: what DIL ends in there, exactly (d, f)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dil_cli.losses.protocol import PreferenceLoss
from results.modes.losses import PAPER, PAPER_BOTH, dpo
from results.modes.pairs import Pairs, preferences
from results.modes.theory import optimum, uniform
from results.modes.world import World, kl

SCALES = (0.5, 1.0, 2.0)
FIXED = ("pi_ref", "the chosen responses")
"""Distributions that stand beside what the losses end in."""

BETAS = torch.logspace(-1, 1, 201, dtype=torch.float64)
"""Where the beta is looked for whose pi* is closest."""


@dataclass(frozen=True)
class Closeness:
    """How close a policy is to what RLHF would end in; means over prompts."""

    forward: float
    """KL(pi* || pi) at beta = 1."""
    backward: float
    """KL(pi || pi*) at beta = 1."""
    best_beta: float
    """The beta of `BETAS` whose pi* has the least KL(pi || pi*) to the policy."""
    best_backward: float
    chosen: float
    """Mean log-prob of the chosen responses, change from the reference."""
    reward: float
    """Expected reward."""


def closeness(world: World, policy_XY: Tensor, chosen_XY: Tensor) -> Closeness:
    """Compare a policy with pi* and with the distribution of the chosen responses, log-probs (X, Y) each."""
    at = torch.stack([kl(policy_XY, world.optimum(float(beta))).mean() for beta in BETAS])
    best = int(at.argmin())
    return Closeness(
        float(kl(world.optimum(), policy_XY).mean()),
        float(kl(policy_XY, world.optimum()).mean()),
        float(BETAS[best]),
        float(at[best]),
        float((kl(chosen_XY, world.reference_XY) - kl(chosen_XY, policy_XY)).mean()),
        float((policy_XY.exp() * world.reward_XY).sum(dim=1).mean()),
    )


def free_optimum(world: World, pairs: Pairs) -> Tensor:
    """Log of pi_ref * (chosen / rejected), (X, Y): the minimum of every h without normalisation."""
    chosen_XY, rejected_XY = pairs.marginals(len(world.reference_XY))
    return world.reference_XY + chosen_XY.log() - rejected_XY.log()


def lsif_optimum(world: World, pairs: Pairs) -> Tensor:
    """The minimum of LSIF over policies, log pi (X, Y): -inf where it leaves a response no probability at all.

    With a multiplier a for normalisation the ratio is max(0, (chosen - a pi_ref) / rejected). The mass of the free
    optimum is above 1, so a is above 0, and h'' does not grow at ratios near 0, so nothing keeps a ratio from 0.
    """
    reference_XY = world.reference_XY.exp()
    chosen_XY, rejected_XY = pairs.marginals(len(reference_XY))
    low_X1 = torch.full((len(reference_XY), 1), -1e3, dtype=torch.float64)
    high_X1 = (chosen_XY / reference_XY).max(dim=1, keepdim=True).values
    for _ in range(200):
        middle_X1 = (low_X1 + high_X1) / 2
        ratio_XY = ((chosen_XY - middle_X1 * reference_XY) / rejected_XY).clamp(min=0)
        above_X1 = (reference_XY * ratio_XY).sum(dim=1, keepdim=True) > 1
        low_X1, high_X1 = torch.where(above_X1, middle_X1, low_X1), torch.where(above_X1, high_X1, middle_X1)
    policy_XY = reference_XY * ratio_XY
    return (policy_XY / policy_XY.sum(dim=1, keepdim=True)).log()


@dataclass(frozen=True)
class Preferred:
    """A loss (or a distribution to compare with) on preferences."""

    pairs: str
    scale: float
    name: str
    gradient: float | None
    policy_XY: Tensor
    closeness: Closeness


def on_preferences(world: World) -> list[Preferred]:
    """Losses on Bradley-Terry pairs at three scales of the reward, and on pairs that are not the reference's own."""
    rows: list[Preferred] = []
    for scale in SCALES:
        losses = {"dpo, beta 1": dpo(), **PAPER, **(PAPER_BOTH if scale == 1 else {})}
        rows += _rows(world.scaled(scale), scale, "pi_ref", None, losses)
    few = {"dpo, beta 1": dpo(), "lsif": PAPER["lsif"], "lsif, both": PAPER_BOTH["lsif, both"]}
    return rows + _rows(world, 1.0, "a uniform policy", uniform(world), few)


def _rows(
    world: World, scale: float, words: str, from_XY: Tensor | None, losses: dict[str, PreferenceLoss]
) -> list[Preferred]:
    pairs = preferences(world, from_XY)
    chosen_XY = pairs.marginals(len(world.reference_XY))[0].log()
    fixed = dict(zip(FIXED, (world.reference_XY, chosen_XY), strict=True))
    rows = [
        Preferred(words, scale, name, None, at_XY, closeness(world, at_XY, chosen_XY)) for name, at_XY in fixed.items()
    ]
    for name, loss in losses.items():
        if name == "lsif":
            at_XY, gradient = lsif_optimum(world, pairs), None
        else:
            end = optimum(world, pairs, loss, normalised=True)
            at_XY, gradient = end.policy_XY, end.gradient
        rows.append(Preferred(words, scale, name, gradient, at_XY, closeness(world, at_XY, chosen_XY)))
    return rows


def masses(world: World) -> dict[float, tuple[float, float, float, float]]:
    """By scale of the reward: smallest and largest mass of the free optimum; responses and chosen ones LSIF drops."""
    found = {}
    for scale in SCALES:
        scaled = world.scaled(scale)
        pairs = preferences(scaled)
        mass_X = free_optimum(scaled, pairs).exp().sum(dim=1)
        chosen_XY = pairs.marginals(len(world.reference_XY))[0]
        dropped_XY = (lsif_optimum(scaled, pairs) == -torch.inf).double()
        share = float((chosen_XY * dropped_XY).sum(dim=1).mean())
        found[scale] = (float(mass_X.min()), float(mass_X.max()), float(dropped_XY.mean()), share)
    return found
