"""Some pairs instead of all: likelihoods along training, over seeds (e, f)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dil_cli.losses.protocol import PreferenceLoss
from results.modes.fit import descend, smooth, table
from results.modes.losses import PAPER, PAPER_BOTH, SFT_SUM, dpo, on_means
from results.modes.pairs import Pairs, draw_pairs, preferences
from results.modes.world import World, kl

SEEDS = range(10)
SIZES = (96, 960)
"""Pairs over all prompts."""

STEPS, RATE = 400, 0.02
FAMILIES = {"six cosines": smooth, "full table": table}


TOKENS = 50
"""Tokens of each response where a loss takes means."""


def losses() -> dict[str, PreferenceLoss]:
    """Losses that are compared on drawn pairs."""
    means = {f"{name}, mean": loss for name, loss in on_means().items() if name in PAPER}
    return {"sft": SFT_SUM, "dpo, beta 1": dpo(), "dpo, beta 0.1": dpo(0.1), **PAPER, **PAPER_BOTH, **means}


@dataclass(frozen=True)
class Training:
    """One loss in one family on one number of pairs. S seeds, T + 1 steps; log-probs are changes from the reference."""

    family: str
    size: int
    name: str
    chosen_ST: Tensor
    """Mean log-prob of the chosen responses trained on."""
    rejected_ST: Tensor
    new_chosen_ST: Tensor
    """The same over all pairs that can occur, by their probabilities."""
    new_rejected_ST: Tensor
    forward_ST: Tensor
    """KL(pi* || pi), mean over prompts."""
    backward_ST: Tensor
    reward_ST: Tensor
    """Expected reward."""

    @property
    def margin_ST(self) -> Tensor:
        """The margin on the pairs trained on."""
        return self.chosen_ST - self.rejected_ST


def train_all(world: World) -> list[Training]:
    """Every family, number of pairs and loss."""
    return [
        _train(world, family, size, name, loss)
        for family in FAMILIES
        for size in SIZES
        for name, loss in losses().items()
    ]


def _train(world: World, family: str, size: int, name: str, loss: PreferenceLoss) -> Training:
    prompts = len(world.reference_XY)
    # The seeds are trained side by side, each on prompts of its own; Adam's steps do not mix parameters.
    many = World(world.reference_XY.repeat(len(SEEDS), 1), world.reward_XY.repeat(len(SEEDS), 1))
    every = preferences(world)
    drawn = [draw_pairs(every, size, seed) for seed in SEEDS]
    pairs = replace(
        every,
        prompt_B=torch.cat([some.prompt_B + seed * prompts for seed, some in zip(SEEDS, drawn, strict=True)]),
        chosen_B=torch.cat([some.chosen_B for some in drawn]),
        rejected_B=torch.cat([some.rejected_B for some in drawn]),
        weight_B=torch.cat([some.weight_B for some in drawn]),
        lengths_Y=torch.full_like(every.lengths_Y, TOKENS),
    )
    policy, first = FAMILIES[family](many)
    chosen_XY, rejected_XY = (at.repeat(len(SEEDS), 1) for at in every.marginals(prompts))
    steps = descend(lambda policy_XY: pairs.loss(loss, policy_XY, many.reference_XY), policy, first, STEPS, RATE)
    rows = [_measure(many, pairs, policy_XY, chosen_XY, rejected_XY) for policy_XY in steps]
    return Training(family, size, name, *torch.stack(rows, dim=2).unbind())


def _measure(many: World, pairs: Pairs, policy_XY: Tensor, chosen_XY: Tensor, rejected_XY: Tensor) -> Tensor:
    """The seven numbers of `Training` at one step, (7, S)."""
    ratio_XY = policy_XY - many.reference_XY
    seeds = len(SEEDS)
    on_chosen_S = ratio_XY[pairs.prompt_B, pairs.chosen_B].reshape(seeds, -1).mean(dim=1)
    on_rejected_S = ratio_XY[pairs.prompt_B, pairs.rejected_B].reshape(seeds, -1).mean(dim=1)
    of_prompts = [
        (chosen_XY * ratio_XY).sum(dim=1),
        (rejected_XY * ratio_XY).sum(dim=1),
        kl(many.optimum(), policy_XY),
        kl(policy_XY, many.optimum()),
        (policy_XY.exp() * many.reward_XY).sum(dim=1),
    ]
    return torch.stack([on_chosen_S, on_rejected_S, *(at_X.reshape(seeds, -1).mean(dim=1) for at_X in of_prompts)])


def at_margin(training: Training, margin: float, values_ST: Tensor) -> dict[int, float]:
    """A number of each seed whose margin reaches `margin`, where it first does, between steps by a line."""
    found = {}
    for seed, (margin_T, value_T) in enumerate(zip(training.margin_ST, values_ST, strict=True)):
        reached = (margin_T >= margin).nonzero()
        if len(reached):
            step = int(reached[0])
            part = (margin - margin_T[step - 1]) / (margin_T[step] - margin_T[step - 1])
            found[seed] = float(value_T[step - 1] + part * (value_T[step] - value_T[step - 1]))
    return found
