"""The theory of the paper on one small prompt: what docs/results/mode_seeking.md says, to rounding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dil_cli.losses import PreferenceLoss
from results.modes.fit import minimise, table, unimodal
from results.modes.losses import PAPER, PAPER_BOTH, SFT_SUM, WIDER, dpo, on_means
from results.modes.pairs import demonstrations, draw_pairs, fewest, preferences
from results.modes.preferred import free_optimum, lsif_optimum
from results.modes.samples import Training, at_margin
from results.modes.theory import (
    at_random,
    optimum,
    rlhf_objective,
    shift_changes,
    theory_pairs,
    uniform,
    with_lengths,
)
from results.modes.world import PROMPTS, World, build, kl, mode_masses

EXACT = 1e-9
ONE = build().only(1)


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


def some_policy(world: World, seed: int = 3) -> Tensor:
    policy, first = table(world)
    return policy(at_random(first, seed))


def test_densities_add_up_to_one_and_pi_star_is_as_defined() -> None:
    world = build()
    for log_probs_XY in (world.reference_XY, world.optimum(), world.optimum(0.5)):
        assert log_probs_XY.exp().sum(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-12)
    # Log-odds against the reference are rewards over beta.
    odds_XY = world.optimum(0.5) - world.reference_XY - world.reward_XY / 0.5
    assert float((odds_XY - odds_XY[:, :1]).abs().max()) < 1e-12


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_gradient_of_rlhf_is_that_of_imitating_pi_star(beta: float) -> None:
    policy, first = table(build())
    leaf = at_random(first, 1).requires_grad_()
    rlhf = gradient(rlhf_objective(build(), policy(leaf), beta), leaf)
    imitated = gradient(beta * kl(policy(leaf), build().optimum(beta)).mean(), leaf)
    assert float(rlhf.abs().max()) > 1e-3
    assert torch.allclose(rlhf, imitated, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["lsif", "bce", "ukl", "bregman, hellinger", "jeffreys", "rulsif, alpha 0.1"])
def test_dil_ends_in_the_ratio_with_and_without_normalisation(name: str) -> None:
    loss, pairs = {**PAPER, **WIDER}[name], theory_pairs(ONE)
    for normalised in (False, True):
        end = optimum(ONE, pairs, loss, normalised)
        assert end.gradient < EXACT
        assert end.error < EXACT


def test_kliep_fixes_the_ratio_up_to_a_constant_and_a_policy_entirely() -> None:
    free, policy = (optimum(ONE, theory_pairs(ONE), WIDER["kliep"], normalised) for normalised in (False, True))
    assert free.error > 0.1
    assert free.error_up_to_constants < EXACT
    assert policy.error < EXACT


def test_means_over_tokens_end_elsewhere() -> None:
    end = optimum(ONE, with_lengths(theory_pairs(ONE)), on_means()["ukl"], normalised=True)
    assert end.gradient < EXACT
    assert float(kl(ONE.optimum(), end.policy_XY)) > 0.1


def test_dpo_is_blind_to_a_constant_of_a_prompt_and_dil_is_not() -> None:
    world = build()
    assert shift_changes(world, dpo(), theory_pairs(world)) < 1e-12
    assert all(shift_changes(world, loss, theory_pairs(world)) > 0.1 for loss in PAPER.values())


@pytest.mark.parametrize(("pairs", "beta"), [("theory", 1.0), ("theory", 0.5), ("preferences", 0.5), ("uniform", 1.0)])
def test_dpo_ends_in_the_optimum_of_rlhf(pairs: str, beta: float) -> None:
    made = {
        "theory": theory_pairs(ONE),
        "preferences": preferences(ONE),
        "uniform": preferences(ONE, uniform(ONE)),
    }[pairs]
    end = optimum(ONE, made, dpo(beta), normalised=True, target_XY=ONE.optimum(beta))
    assert end.gradient < EXACT
    assert end.error < EXACT


def test_ukl_has_the_gradient_of_sft_where_rejected_responses_are_the_references() -> None:
    policy, first = table(ONE)
    leaf = at_random(first, 2).requires_grad_()
    pairs = demonstrations(ONE.optimum(), ONE.reference_XY)
    ukl, sft = (gradient(pairs.loss(loss, policy(leaf), ONE.reference_XY), leaf) for loss in (PAPER["ukl"], SFT_SUM))
    assert torch.allclose(ukl, sft, rtol=0, atol=1e-14)
    # On preferences it is so with both responses as samples of the reference, and not with the rejected ones alone.
    pairs = preferences(ONE)
    sft, both, alone = (
        gradient(pairs.loss(loss, policy(leaf), ONE.reference_XY), leaf)
        for loss in (SFT_SUM, PAPER_BOTH["ukl, both"], PAPER["ukl"])
    )
    assert torch.allclose(both, sft, rtol=0, atol=1e-14)
    assert not torch.allclose(alone, sft, rtol=0, atol=1e-3)


@pytest.mark.parametrize("loss", PAPER_BOTH.values(), ids=PAPER_BOTH)
def test_both_ends_in_the_chosen_responses(loss: PreferenceLoss) -> None:
    chosen_XY = preferences(ONE).marginals(1)[0].log()
    assert optimum(ONE, preferences(ONE), loss, normalised=True, target_XY=chosen_XY).error < EXACT


def test_without_normalisation_preferences_ask_for_too_much_mass() -> None:
    end = optimum(ONE, preferences(ONE), PAPER["bce"], normalised=False, target_XY=free_optimum(ONE, preferences(ONE)))
    assert end.error < EXACT
    assert float(end.policy_XY.exp().sum()) > 1.5


def test_lsif_on_preferences_drops_responses() -> None:
    pairs, lsif = fewest(preferences(ONE)), PAPER["lsif"]
    best_XY = lsif_optimum(ONE, pairs)
    dropped_XY = best_XY == -math.inf
    assert 0 < int(dropped_XY.sum()) < dropped_XY.numel()
    value = float(pairs.loss(lsif, best_XY, ONE.reference_XY))
    for other_XY in (ONE.optimum(), ONE.reference_XY, some_policy(ONE)):
        for share in (1e-3, 1.0):
            mixed_XY = ((1 - share) * best_XY.exp() + share * other_XY.exp()).log()
            assert float(pairs.loss(lsif, mixed_XY, ONE.reference_XY)) > value
    found = optimum(ONE, preferences(ONE), lsif, normalised=True)
    assert float(pairs.loss(lsif, found.policy_XY, ONE.reference_XY)) == pytest.approx(value, abs=1e-5)


def test_few_pairs_stand_for_all_in_losses_that_take_responses_apart() -> None:
    world = build()
    pairs, policy_XY = preferences(world), some_policy(world)
    few = fewest(pairs)
    assert len(few.weight_B) < len(pairs.weight_B) / 20
    assert float(few.weight_B.sum()) == pytest.approx(1)
    for loss in (*PAPER.values(), *PAPER_BOTH.values(), *WIDER.values(), SFT_SUM):
        all_pairs = float(pairs.loss(loss, policy_XY, world.reference_XY))
        assert float(few.loss(loss, policy_XY, world.reference_XY)) == pytest.approx(all_pairs, abs=1e-10)
    apart = few.loss(dpo(), policy_XY, world.reference_XY) - pairs.loss(dpo(), policy_XY, world.reference_XY)
    assert abs(float(apart)) > 0.01


def test_drawn_pairs_follow_their_probabilities() -> None:
    drawn = draw_pairs(preferences(ONE), 20_000, seed=0)
    for drawn_XY, exact_XY in zip(drawn.marginals(1), preferences(ONE).marginals(1), strict=True):
        assert float((drawn_XY - exact_XY).abs().max()) < 0.01


def test_one_bell_covers_both_modes_for_sft_and_takes_one_for_reverse_kl() -> None:
    pairs, (policy, reference) = fewest(theory_pairs(ONE)), unimodal(1)
    narrow = torch.tensor([[0.3, math.log(0.05)]], dtype=torch.float64)
    sft, lsif, reverse = (
        min((minimise(objective, policy, start) for start in (reference, narrow)), key=lambda fit: fit.value).policy_XY
        for objective in (
            lambda policy_XY: pairs.loss(SFT_SUM, policy_XY, ONE.reference_XY),
            lambda policy_XY: pairs.loss(PAPER["lsif"], policy_XY, ONE.reference_XY),
            lambda policy_XY: kl(policy_XY, ONE.optimum()).sum(),
        )
    )
    assert min(mode_masses(PROMPTS[1], sft[0])) > 0.05
    assert mode_masses(PROMPTS[1], lsif[0])[0] > 0.95
    assert mode_masses(PROMPTS[1], reverse[0])[0] > 0.95
    assert float(kl(reverse, ONE.optimum())) < float(kl(sft, ONE.optimum()))
    assert float(kl(ONE.optimum(), reverse)) > float(kl(ONE.optimum(), sft))


def test_a_number_is_read_where_the_margin_is_first_reached() -> None:
    chosen_ST = torch.tensor([[0.0, 0.2, -0.4], [0.0, 0.1, 0.1]])
    rejected_ST = torch.tensor([[0.0, -0.2, -1.4], [0.0, 0.0, 0.0]])
    training = Training("", 0, "", chosen_ST, rejected_ST, *[chosen_ST] * 5)
    # Margins 0, 0.4, 1.0 and 0, 0.1, 0.1: halfway between 0.4 and 1.0, and never.
    assert at_margin(training, 0.7, chosen_ST) == pytest.approx({0: -0.1})
