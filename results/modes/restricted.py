"""Policies that cannot hold pi*: one bell for a reward of several modes. Who covers them, who takes one (e)?"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dil_cli.losses import DPO
from dil_cli.losses.protocol import PreferenceLoss
from results.modes.fit import Fit, descend, minimise, unimodal
from results.modes.losses import PAPER, PAPER_BOTH, SFT_SUM, WIDER, dpo
from results.modes.pairs import Pairs, demonstrations, fewest, preferences
from results.modes.world import PROMPTS, World, build, kl, mode_masses

REVERSE_KL = "reverse KL (RLHF)"

CENTRES, WIDTHS = (0.1, 0.3, 0.5, 0.7, 0.9), (0.05, 0.2)
"""Starts besides the reference; the best minimum that any of them reaches is the optimum."""

STEPS, RATE = 600, 0.02
"""Adam from the reference: the minimum that training would reach."""

SKIPPED = ("ukl_official", "kliep", "bregman, itakura_saito")
"""The first two are `ukl` and `sft` where policies add up to 1. The last starts at ratios beyond its guard."""

ALIKE = 1e-6
"""Minima whose values differ by less are the same."""


@dataclass(frozen=True)
class Bell:
    """What a loss makes of one bell at one prompt, log-probs (Y,) each."""

    name: str
    prompt: int
    best_Y: Tensor
    gradient: float
    minima: int
    """Different values in which the starts ended."""
    trained_Y: Tensor
    masses: list[float]
    trained_masses: list[float]
    forward: float
    backward: float

    @property
    def trained_is_best(self) -> bool:
        """Whether training ended in the best minimum, up to 0.02 of probability on a mode."""
        return all(abs(a - b) < 0.02 for a, b in zip(self.masses, self.trained_masses, strict=True))


def theory_losses() -> dict[str, PreferenceLoss | None]:
    """Losses to compare on the pairs of DIL's theory; None is reverse KL itself."""
    wider = {name: loss for name, loss in WIDER.items() if name not in SKIPPED}
    return {REVERSE_KL: None, "sft": SFT_SUM, "dpo, beta 1": dpo(), **PAPER, **wider}


def preference_losses() -> dict[str, PreferenceLoss | None]:
    """Losses to compare on preferences."""
    return {REVERSE_KL: None, "sft": SFT_SUM, "dpo, beta 1": dpo(), **PAPER, **PAPER_BOTH}


def on_theory(world: World) -> list[Bell]:
    """Every prompt and loss, chosen from pi*, rejected from the reference."""
    return _bells(world, theory_losses(), lambda one: demonstrations(one.optimum(), one.reference_XY))


def on_preferences(world: World) -> list[Bell]:
    """Every prompt and loss on Bradley-Terry pairs."""
    return _bells(world, preference_losses(), preferences)


def target_masses(prompt: int) -> list[float]:
    """What pi* has on each mode of a prompt."""
    return mode_masses(PROMPTS[prompt], build().optimum()[prompt])


def _bells(world: World, losses: dict[str, PreferenceLoss | None], pairs_of: Callable[[World], Pairs]) -> list[Bell]:
    return [
        _bell(world.only(x), x, name, loss, pairs_of(world.only(x)))
        for x in range(len(PROMPTS))
        for name, loss in losses.items()
    ]


def _bell(world: World, x: int, name: str, loss: PreferenceLoss | None, pairs: Pairs) -> Bell:
    optimum_XY = world.optimum()
    pairs = pairs if isinstance(loss, DPO) else fewest(pairs)

    def objective(policy_XY: Tensor) -> Tensor:
        return kl(policy_XY, optimum_XY).sum() if loss is None else pairs.loss(loss, policy_XY, world.reference_XY)

    policy, reference = unimodal(x)
    starts = [reference]
    starts += [torch.tensor([[c, math.log(w)]], dtype=torch.float64) for c in CENTRES for w in WIDTHS]
    fits: list[Fit] = [minimise(objective, policy, at) for at in starts]
    best = min(fits, key=lambda fit: fit.value)
    values = sorted(fit.value for fit in fits)
    minima = 1 + sum(b - a > ALIKE for a, b in itertools.pairwise(values))
    trained_XY = deque(descend(objective, policy, reference, STEPS, RATE), maxlen=1)[0]
    return Bell(
        name,
        x,
        best.policy_XY[0],
        best.gradient,
        minima,
        trained_XY[0],
        mode_masses(PROMPTS[x], best.policy_XY[0]),
        mode_masses(PROMPTS[x], trained_XY[0]),
        float(kl(optimum_XY, best.policy_XY)),
        float(kl(best.policy_XY, optimum_XY)),
    )
