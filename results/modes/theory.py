"""What the paper proves, as numbers: RLHF as imitation (a), the optimum of DIL (b), DPO as its CPC member (c)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dil_cli.losses import DPO
from dil_cli.losses.protocol import PreferenceLoss
from results.modes.fit import Policy, free, minimise, smooth, table
from results.modes.losses import dpo
from results.modes.pairs import Pairs, demonstrations, fewest, preferences
from results.modes.world import World, kl

RANDOM_POLICIES = 20
BETAS = (0.5, 1.0, 2.0)


def rlhf_objective(world: World, policy_XY: Tensor, beta: float) -> Tensor:
    """-(E_pi[r] - beta KL(pi || pi_ref)), the mean over prompts: what RLHF minimises."""
    reward_X = (policy_XY.exp() * world.reward_XY).sum(dim=1)
    return (beta * kl(policy_XY, world.reference_XY) - reward_X).mean()


def at_random(first: Tensor, seed: int) -> Tensor:
    """Parameters drawn about some others, with a deviation of 1."""
    return first + torch.randn(first.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Imitation:
    """How far RLHF is from imitating pi* under reverse KL, over random policies."""

    beta: float
    family: str
    gradient: float
    """Largest difference of a component of the two gradients."""
    value: float
    """Largest deviation of beta KL(pi || pi*) - (RLHF's objective) from the constant beta log Z."""
    optimum: float
    """Largest difference of log pi at RLHF's own minimum from log pi*; NaN where the family does not hold pi*."""


def imitation(world: World) -> list[Imitation]:
    """RLHF beside beta KL(pi || pi*) in two families of policies."""
    return [
        _imitation(world, beta, family, *build(world))
        for family, build in (("full table", table), ("six cosines", smooth))
        for beta in BETAS
    ]


def _imitation(world: World, beta: float, family: str, policy: Policy, first: Tensor) -> Imitation:
    optimum_XY = world.optimum(beta)
    log_z = torch.logsumexp(world.reference_XY + world.reward_XY / beta, dim=1).mean()
    gradient = value = 0.0
    for seed in range(RANDOM_POLICIES):
        leaf = at_random(first, seed).requires_grad_()
        rlhf = rlhf_objective(world, policy(leaf), beta)
        imitated = beta * kl(policy(leaf), optimum_XY).mean()
        a, b = (torch.autograd.grad(loss, leaf)[0] for loss in (rlhf, imitated))
        gradient = max(gradient, float((a - b).abs().max()))
        value = max(value, float((imitated - rlhf - beta * log_z).detach().abs()))
    if family != "full table":
        return Imitation(beta, family, gradient, value, float("nan"))
    fit = minimise(lambda policy_XY: rlhf_objective(world, policy_XY, beta), policy, at_random(first, 0))
    return Imitation(beta, family, gradient, value, float((fit.policy_XY - optimum_XY).abs().max()))


@dataclass(frozen=True)
class Optimum:
    """Where a loss ends, from a random start."""

    policy_XY: Tensor
    gradient: float
    error: float
    """Largest difference of log pi from log pi*."""
    error_up_to_constants: float
    """The same after the best constant of each prompt is taken off."""
    constants: tuple[float, float]
    """Smallest and largest of these constants."""


def optimum(
    world: World, pairs: Pairs, loss: PreferenceLoss, normalised: bool, target_XY: Tensor | None = None
) -> Optimum:
    """The minimum of a loss over all pairs for a full table, normalised or not, beside pi* or another target."""
    policy, first = table(world) if normalised else free(world)
    pairs = pairs if isinstance(loss, DPO) else fewest(pairs)
    fit = minimise(lambda policy_XY: pairs.loss(loss, policy_XY, world.reference_XY), policy, at_random(first, 0))
    gap_XY = fit.policy_XY - (world.optimum() if target_XY is None else target_XY)
    constant_X = gap_XY.mean(dim=1)
    return Optimum(
        fit.policy_XY,
        fit.gradient,
        float(gap_XY.abs().max()),
        float((gap_XY - constant_X[:, None]).abs().max()),
        (float(constant_X.min()), float(constant_X.max())),
    )


def theory_pairs(world: World) -> Pairs:
    """Chosen from pi*, rejected from the reference, independently."""
    return demonstrations(world.optimum(), world.reference_XY)


def with_lengths(pairs: Pairs) -> Pairs:
    """The same pairs with responses of 1 to 8 tokens."""
    tokens_Y = 1 + torch.arange(len(pairs.lengths_Y)) % 8
    return replace(pairs, lengths_Y=tokens_Y.double())


def shift_changes(world: World, loss: PreferenceLoss, pairs: Pairs) -> float:
    """By how much a loss changes at pi* when constants of +2, -1 and +1 are added to the prompts' log-ratios."""
    shift_X = torch.tensor([2.0, -1.0, 1.0], dtype=torch.float64)
    at_XY = world.optimum()
    moved = pairs.loss(loss, at_XY + shift_X[:, None], world.reference_XY)
    return float((moved - pairs.loss(loss, at_XY, world.reference_XY)).abs())


def uniform(world: World) -> Tensor:
    """Log-probs (X, Y) of responses drawn without looking."""
    return torch.zeros_like(world.reference_XY).log_softmax(dim=1)


@dataclass(frozen=True)
class Cpc:
    """DPO on some pairs: what it should end in, and where it ends."""

    pairs: str
    beta: float
    normalised: bool
    end: Optimum


def cpc(world: World) -> list[Cpc]:
    """DPO on Bradley-Terry pairs and on pairs of DIL's theory, for policies and for free ratios."""
    theory, preferred = theory_pairs(world), preferences(world)
    elsewhere = preferences(world, uniform(world))
    words = {
        "theory": "chosen from pi*, rejected from pi_ref",
        "bt": "Bradley-Terry, from pi_ref",
        "un": "Bradley-Terry, from a uniform policy",
    }
    rows = []
    for key, pairs, beta, normalised in (
        ("theory", theory, 1.0, False), ("theory", theory, 1.0, True), ("theory", theory, 0.5, True),
        ("bt", preferred, 1.0, False), ("bt", preferred, 1.0, True), ("bt", preferred, 0.5, True),
        ("bt", preferred, 2.0, True), ("un", elsewhere, 1.0, True),
    ):  # fmt: skip
        # Under the theory's pairs the log-odds are those of pi* at beta = 1, whatever beta the loss has.
        target_XY = world.optimum(beta)
        rows.append(Cpc(words[key], beta, normalised, optimum(world, pairs, dpo(beta), normalised, target_XY)))
    return rows
