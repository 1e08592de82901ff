"""A world small enough to sum over: X prompts, Y responses on a line, a reference and a reward that are known.

Shape suffixes, here and in the files beside it: X prompts, Y responses, M modes, B pairs. Logarithms are natural.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RESPONSES = 50
WIDTH = 0.05
"""Width of a bump of the reward; responses lie at 0 to 1."""

HEIGHT = 5.0
"""Reward of the best response in nats; 0 far from all modes."""

NEAR = 2 * WIDTH
"""A response belongs to a mode when it is no further from it."""


@dataclass(frozen=True)
class Mode:
    """A bump of the reward: where it lies, and its height as a share of `HEIGHT`."""

    place: float
    height: float


@dataclass(frozen=True)
class Prompt:
    """A prompt: the modes of its reward, and centre and width of the reference."""

    name: str
    modes: tuple[Mode, ...]
    centre: float
    width: float


PROMPTS = (
    Prompt("two modes", (Mode(0.25, 1.0), Mode(0.75, 1.0)), 0.48, 0.25),
    Prompt("a large and a small mode", (Mode(0.3, 1.0), Mode(0.8, 0.8)), 0.5, 0.25),
    Prompt("three modes", (Mode(0.15, 0.9), Mode(0.5, 0.8), Mode(0.85, 1.0)), 0.5, 0.3),
)


def places() -> Tensor:
    """Where the responses lie, (Y,) float64."""
    return torch.linspace(0, 1, RESPONSES, dtype=torch.float64)


def bell(centre_X: Tensor, width_X: Tensor) -> Tensor:
    """Log-probs (X, Y) of a normal density at the responses, normalised over them: one mode whatever its arguments."""
    distance_XY = (places() - centre_X[:, None]) / width_X[:, None]
    return (-(distance_XY**2) / 2).log_softmax(dim=1)


@dataclass(frozen=True)
class World:
    """Reference log-probs and rewards, (X, Y) each."""

    reference_XY: Tensor
    reward_XY: Tensor

    def optimum(self, beta: float = 1.0) -> Tensor:
        """Log pi* = log pi_ref + r / beta - log Z, (X, Y): what RLHF with a KL penalty of beta ends in."""
        return (self.reference_XY + self.reward_XY / beta).log_softmax(dim=1)

    def scaled(self, scale: float) -> World:
        """The same world with rewards times `scale`."""
        return World(self.reference_XY, scale * self.reward_XY)

    def only(self, prompt: int) -> World:
        """The world of one prompt."""
        return World(self.reference_XY[prompt : prompt + 1], self.reward_XY[prompt : prompt + 1])


def build() -> World:
    """The world of the page: three prompts, 64 responses each."""
    reference_XY = bell(*start())
    return World(reference_XY, HEIGHT * torch.stack([_bumps(prompt) for prompt in PROMPTS]))


def _bumps(prompt: Prompt) -> Tensor:
    """The reward of each response, (Y,), as a share of `HEIGHT`."""
    return torch.stack(
        [mode.height * torch.exp(-(((places() - mode.place) / WIDTH) ** 2) / 2) for mode in prompt.modes]
    ).sum(dim=0)


def start() -> tuple[Tensor, Tensor]:
    """Centre and width (X,) of the reference of each prompt."""
    centre_X = torch.tensor([prompt.centre for prompt in PROMPTS], dtype=torch.float64)
    return centre_X, torch.tensor([prompt.width for prompt in PROMPTS], dtype=torch.float64)


def mode_masses(prompt: Prompt, policy_Y: Tensor) -> list[float]:
    """The probability near each mode of a prompt, from log-probs (Y,)."""
    return [float(policy_Y.exp()[(places() - mode.place).abs() <= NEAR].sum()) for mode in prompt.modes]


def kl(p_XY: Tensor, q_XY: Tensor) -> Tensor:
    """KL(p || q) of each prompt, (X,), from log-probs."""
    terms_XY = p_XY.exp() * (p_XY - q_XY)
    return torch.where(p_XY == -torch.inf, 0, terms_XY).sum(dim=1)
