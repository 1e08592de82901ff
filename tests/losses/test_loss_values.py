"""Each loss by hand, its gradient by finite differences, and what the DIL paper says of the losses."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from every_loss import EVERY, PINNED, label, usual

from dil_cli.losses import BCE, DPO, LOSSES, LSIF, SFT, UKL, Bregman, Combine, Reduction, ReferenceSamples, SimPO, SLiC
from dil_cli.losses.any_convex import GRID
from dil_cli.losses.dpo import Divergence

LOG2, LOG3 = math.log(2), math.log(3)
MEAN, SUM, BOTH = Reduction.mean, Reduction.sum, ReferenceSamples.both
RATIO_LOSSES = [LSIF, BCE, UKL, DPO]


def sigma(x):
    return 1 / (1 + math.exp(-x))


def loss(name, **settings):
    return LOSSES[name](**settings)


# Summed log-probs: chosen -6 over 3 tokens, rejected -10 over 2. Reference: log-ratios log 8 over 3 tokens
# and -log 9 over 2, so per token s_w = log 2, s_l = -log 3; and p_w = -2, p_l = -5.
# So r_w = 2, r_l = 1/3 per token; 8 and 1/9 per response, whose quotient is 72.
BY_HAND = [
    (SFT(), 2),
    (SFT(reduction=SUM), 6),
    (LSIF(), -2 + 1 / 18),
    (LSIF(reduction=SUM), -8 + 1 / 162),
    (LSIF(reference_samples=BOTH), -2 + (2 + 1 / 18) / 2),
    (BCE(), math.log(3 / 2) + math.log(4 / 3)),
    (BCE(reduction=SUM), math.log(9 / 8) + math.log(10 / 9)),
    (BCE(reference_samples=BOTH), math.log(3 / 2) + (math.log(3) + math.log(4 / 3)) / 2),
    (UKL(), -LOG2 + 1 / 3),
    (UKL(reduction=SUM), -3 * LOG2 + 1 / 9),
    (UKL(reference_samples=BOTH), -LOG2 + (2 + 1 / 3) / 2),
    (loss("ukl_official"), 2 + 1 / 3),
    (loss("power", alpha=1), (1 / 9 - 1) / 2 - 1),
    (loss("power", alpha=0), 1 / 3 - 1 - LOG2),
    (loss("power", alpha=-1), -LOG3 - 1 / 2),
    (loss("power", alpha=2), (1 / 27 - 1) / 3 - 3 / 2),
    (loss("power", alpha=1, reference_samples=BOTH), ((1 / 9 - 1) / 2 + 3 / 2) / 2 - 1),
    (loss("jeffreys"), -LOG3 + 1 / 3 - LOG2 + 1 / 2 - 2),
    (loss("brier"), 1 / 9 + 1 / 16),
    (loss("rulsif", alpha=0.5), ((4 / 3) ** 2 + (1 / 2) ** 2) / 4 - 4 / 3),
    (loss("kliep"), -LOG2 - LOG3),
    (loss("kliep", reference_samples=BOTH), math.log((2 + 1 / 3) / 2) - LOG2),
    (Bregman(h=lambda r: r**2), 1 / 9 - 4),
    (Combine(terms={"dpo": {"weight": 2, "beta": 1}, "sft": 0.5}), 2 * math.log(73 / 72) + 1),
    (DPO(beta=1), math.log(73 / 72)),
    (DPO(beta=1, reduction=MEAN), math.log(7 / 6)),
    (DPO(beta=0.5), math.log(1 + 72**-0.5)),
    (loss("cdpo", beta=1, epsilon=0.2), 0.8 * math.log(73 / 72) + 0.2 * math.log(73)),
    (loss("robust_dpo", beta=1, epsilon=0.2), (0.8 * math.log(73 / 72) - 0.2 * math.log(73)) / 0.6),
    (loss("fdpo", divergence=Divergence.reverse_kl, beta=1), math.log(73 / 72)),
    (loss("fdpo", divergence=Divergence.forward_kl, beta=1), math.log1p(math.exp(1 / 8 - 9))),
    (loss("fdpo", divergence=Divergence.js, beta=1), math.log1p((1 / 10) / (8 / 9))),
    (loss("fdpo", divergence=Divergence.alpha, alpha=0.5, beta=1), math.log1p(math.exp(2 / math.sqrt(8) - 2 * 3))),
    (loss("rdpo", beta=1, alpha=LOG2), math.log(145 / 144)),
    (loss("rdpo", beta=1, alpha=LOG2, sign=-1), math.log(37 / 36)),
    (loss("dpop", beta=1, lam=3), math.log(73 / 72)),
    (loss("ipo", tau=0.5), (math.log(6) - 1) ** 2),
    (loss("ipo", tau=0.5, reduction=SUM), (math.log(72) - 1) ** 2),
    (loss("rso", beta=0.1), 1 - 0.1 * math.log(72)),
    (loss("rso", beta=1), 0),
    (loss("exo", beta=1, epsilon=0.2), 72 / 73 * math.log(72 / 73 / 0.8) + 1 / 73 * math.log(1 / 73 / 0.2)),
    (loss("aot", beta=1), math.log(73 / 72)),
    (loss("aot", beta=1, epsilon=0.2, paired=False), 0.8 * math.log(73 / 72) + 0.2 * math.log(73)),
    (loss("nca", beta=1), math.log(9 / 8) + (math.log(9) + math.log(10 / 9)) / 2),
    (loss("bco", beta=1, delta=0), math.log(9 / 8) + math.log(10 / 9)),
    (loss("bco", beta=1, delta=LOG2), math.log(5 / 4) + math.log(19 / 18)),
    (loss("kto", beta=1, z=0), 1 / 9 + 1 / 10),
    (loss("kto", beta=1, z=LOG2, lam_d=2, lam_u=3), 2 / 5 + 3 / 19),
    (loss("apo_zero", beta=1), -8 / 9 + 1 / 10),
    (loss("apo_down", beta=1), 8 / 9 - 72 / 73),
    (loss("cal_dpo", beta=0.5, weight=2), math.log(73 / 72) + 2 * ((3 * LOG2 - 1) ** 2 + (2 * LOG3 - 1) ** 2)),
    (loss("sppo", beta=0.5), (3 * LOG2 - 1) ** 2 + (2 * LOG3 - 1) ** 2),
    (SLiC(), 0.2),
    (SLiC(delta=4), 1.2),
    (SLiC(delta=4, lam=0.5), 2),
    (SLiC(delta=4, lam=0.5, reduction=SUM), 3),
    (SLiC(delta=5, lam=0.5, reduction=SUM), 4),
    (SimPO(), math.log1p(math.exp(1.6 - 6))),
    (SimPO(beta=0.5, gamma=1), math.log1p(math.exp(-0.5))),
    (loss("cpo", beta=0.5, lam=2), math.log1p(math.exp(-2)) + 12),
    (loss("cpo", beta=0.5, lam=2, nll=MEAN), math.log1p(math.exp(-2)) + 4),
    (loss("orpo", lam=0.5), 2 + 0.5 * math.log1p(math.expm1(2) / math.expm1(5))),
    (loss("rrhf", lam=0.5), 3),
    (loss("rrhf", lam=0.5, nll=MEAN), 1),
    (loss("simper"), -math.exp(-2) + math.exp(-5)),
]


@pytest.fixture
def pair(make_pairs):
    return make_pairs([-6], [-10], [-6 - 3 * LOG2], [-10 + 2 * LOG3], tokens=([3], [2]))


@pytest.mark.parametrize(("loss", "value"), BY_HAND, ids=lambda x: x.name if hasattr(x, "name") else "")
def test_value_by_hand(loss, value, pair):
    assert loss(pair).loss_B.tolist() == pytest.approx([value], rel=1e-12)


def test_every_loss_has_a_value_by_hand():
    assert {loss.name for loss, _ in BY_HAND} == PINNED


def test_where_the_paper_s_sign_or_the_hinge_turns(make_pairs):
    """The other side of what `BY_HAND` shows: a chosen response below its reference, a pair ranked wrongly."""
    pair = make_pairs([-6], [-5], [-6 + LOG2], [-5], tokens=([3], [5]))  # s_w = -log 2, s_l = 0, p_w = -2, p_l = -1
    assert loss("dpop", beta=1, lam=3)(pair).loss_B.item() == pytest.approx(math.log(17))  # z = -(1 + 3) log 2
    assert loss("rrhf", lam=0.5)(pair).loss_B.item() == pytest.approx(1 + 3)
    assert loss("kto", beta=1, z=0)(pair).loss_B.item() == pytest.approx(2 / 3 + 1 / 2)


@pytest.fixture
def random_pairs(make_pairs):
    generator = torch.Generator().manual_seed(7)
    columns = 2 * torch.randn(4, 6, generator=generator, dtype=torch.float64) - 8
    return make_pairs(*columns.tolist(), tokens=([1, 2, 3, 5, 8, 13], [4, 1, 9, 2, 7, 3]))


def held_fixed(loss, pairs):
    """The loss with the statistic that carries no gradient at its value in this batch."""
    if loss.name not in {"kto", "bco"}:
        return loss
    s_B = torch.cat(
        [pairs.policy_chosen_B - pairs.reference_chosen_B, pairs.policy_rejected_B - pairs.reference_rejected_B]
    )
    if loss.reduction == MEAN:
        s_B = s_B / torch.cat([pairs.chosen_tokens_B, pairs.rejected_tokens_B])
    if loss.name == "bco":
        return replace(loss, delta=float(loss.beta * s_B.mean())) if loss.delta is None else loss
    return replace(loss, z=max(0.0, float(s_B.mean()))) if loss.z is None else loss


@pytest.mark.parametrize("loss", EVERY, ids=label)
def test_gradcheck(loss, random_pairs, value_and_gradients):
    fixed = held_fixed(loss, random_pairs)
    for one_B, other_B in zip(
        value_and_gradients(loss, random_pairs), value_and_gradients(fixed, random_pairs), strict=True
    ):
        torch.testing.assert_close(one_B, other_B, rtol=1e-12, atol=1e-14)

    def value(chosen_B, rejected_B):
        return fixed(replace(random_pairs, policy_chosen_B=chosen_B, policy_rejected_B=rejected_B)).loss_B

    leaves = (random_pairs.policy_chosen_B, random_pairs.policy_rejected_B)
    assert torch.autograd.gradcheck(value, [x_B.clone().requires_grad_() for x_B in leaves])


@pytest.mark.parametrize("loss", EVERY, ids=label)
def test_order_of_pairs_does_not_matter(loss, random_pairs):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = loss(random_pairs.map(lambda x_B: x_B[order])).loss_B
    torch.testing.assert_close(shuffled, loss(random_pairs).loss_B[order], rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", EVERY, ids=label)
def test_only_what_says_so_couples_the_batch(loss, random_pairs):
    alone = torch.cat([loss(random_pairs.map(lambda x_B, i=i: x_B[i : i + 1])).loss_B for i in range(6)])
    same = torch.allclose(alone, loss(random_pairs).loss_B, rtol=1e-12)
    fixed = loss.name in {"kto", "bco"} and loss == held_fixed(loss, random_pairs)
    assert same == (not loss.couples_batch or fixed)


AT_REFERENCE = {
    "lsif": -0.5, "bce": 1.386294361119891, "ukl": 1.0, "power": 0.0, "jeffreys": 0.0, "brier": 0.5, "rulsif": -0.5,
    "kliep": 0.0, "bregman": -0.5, "dpo": 0.693147180559945, "cdpo": 0.693147180559945,
    "robust_dpo": 0.693147180559945, "fdpo": 0.693147180559945, "dpop": 0.693147180559945, "ipo": 25.0, "rso": 1.0,
    "exo": 2.761230709098, "aot": 0.693147180559945, "nca": 1.386294361119891, "bco": 1.386294361119891, "kto": 1.0,
    "apo_zero": 0.0, "apo_down": 0.0, "cal_dpo": 500000.693147180560, "sppo": 500000.0,
}  # fmt: skip
"""Losses that have one value wherever policy = reference, with their default settings."""


@pytest.mark.parametrize("name", sorted(PINNED))
def test_known_value_at_the_reference(name):
    known = AT_REFERENCE.get(name)
    assert usual(name).at_reference() == (None if known is None else pytest.approx(known, rel=1e-12))


@pytest.mark.parametrize("loss", EVERY, ids=label)
def test_value_at_the_reference(loss, random_pairs):
    same = replace(
        random_pairs,
        reference_chosen_B=random_pairs.policy_chosen_B,
        reference_rejected_B=random_pairs.policy_rejected_B,
    )
    values = loss(same).loss_B.tolist()
    if loss.at_reference() is None:
        assert len(set(values)) > 1
    else:
        assert values == pytest.approx([loss.at_reference()] * len(values), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("loss", [x for x in EVERY if getattr(x, "reference_samples", None) == BOTH], ids=label)
def test_both_is_the_mean_over_the_two_stand_ins(loss, random_pairs, value_and_gradients):
    """Under `both`, L(s_w, s_l) is the mean of `rejected`'s L(s_w, s_l) and L(s_w, s_w); its pull ends at r_w = 2."""
    if loss.name == "kliep":
        return  # the mean is inside a logarithm; by hand above
    one = replace(loss, reference_samples=ReferenceSamples.rejected)
    twin = replace(
        random_pairs, policy_rejected_B=random_pairs.policy_chosen_B,
        reference_rejected_B=random_pairs.reference_chosen_B, rejected_tokens_B=random_pairs.chosen_tokens_B,
    )  # fmt: skip
    value_B, grad_w_B, grad_l_B = value_and_gradients(loss, random_pairs)
    single, itself = value_and_gradients(one, random_pairs), value_and_gradients(one, twin)
    torch.testing.assert_close(value_B, (single[0] + itself[0]) / 2)
    torch.testing.assert_close(grad_w_B, single[1] + itself[2] / 2)
    torch.testing.assert_close(grad_l_B, single[2] / 2)
    s_w_B = (random_pairs.policy_chosen_B - random_pairs.reference_chosen_B) / (
        random_pairs.chosen_tokens_B if loss.reduction == MEAN else 1
    )
    torch.testing.assert_close(grad_w_B, single[1] * (1 - s_w_B.exp() / 2))
    assert ((grad_w_B < 0) == (s_w_B < LOG2)).all()


def test_members_of_the_family_are_equal_up_to_constants(random_pairs):
    """Power at 1 is LSIF + 1/2, at 0 UKL - 1; Jeffreys is power at 0 plus power at -1; RuLSIF tends to LSIF."""
    value = lambda name, **settings: LOSSES[name](**settings)(random_pairs).loss_B  # noqa: E731
    torch.testing.assert_close(value("power", alpha=1), value("lsif") + 0.5)
    torch.testing.assert_close(value("power", alpha=0), value("ukl") - 1)
    torch.testing.assert_close(value("jeffreys"), value("power", alpha=0) + value("power", alpha=-1))
    torch.testing.assert_close(value("rulsif", alpha=1e-9), value("lsif"), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(value("dpo", beta=1), value("fdpo", divergence=Divergence.reverse_kl, beta=1))
    torch.testing.assert_close(value("bce", reduction=SUM), value("bco", beta=1, delta=0))
    torch.testing.assert_close(value("apo_zero") + 1, value("kto", z=0))
    difference_B = value("ukl_official") - value("ukl")
    torch.testing.assert_close(difference_B, -random_pairs.reference_chosen_B / random_pairs.chosen_tokens_B)


def test_alpha_divergence_runs_from_reverse_to_forward_kl(random_pairs):
    value = lambda **settings: LOSSES["fdpo"](**settings)(random_pairs).loss_B  # noqa: E731
    near_0 = value(divergence=Divergence.alpha, alpha=1e-9)
    near_1 = value(divergence=Divergence.alpha, alpha=1 - 1e-9)
    torch.testing.assert_close(near_0, value(divergence=Divergence.reverse_kl), rtol=1e-6, atol=0)
    torch.testing.assert_close(near_1, value(divergence=Divergence.forward_kl), rtol=1e-6, atol=0)


def test_convex_functions_are_tried_where_a_ratio_may_be():
    assert GRID[0] < 0.01
    assert GRID[-1] > 100
    assert {field.name for field in fields(Bregman)} == {"h", "reduction", "exp_cap", "reference_samples"}


@pytest.mark.parametrize("loss_type", RATIO_LOSSES)
def test_at_the_reference_both_responses_weigh_the_same(loss_type, make_pairs, value_and_gradients):
    """So the first steps of all four point the same way, under one reduction."""
    pairs = make_pairs([-40], [-60], [-40], [-60], tokens=([10], [20]))
    for reduction, (n_w, n_l) in ((Reduction.mean, (10, 20)), (SUM, (1, 1))):
        _, grad_w_B, grad_l_B = value_and_gradients(loss_type(reduction=reduction), pairs)
        weight = {LSIF: 1, UKL: 1, BCE: 0.5, DPO: 0.1 / 2}[loss_type]
        assert (grad_w_B * n_w).tolist() == pytest.approx([-weight])
        assert (grad_l_B * n_l).tolist() == pytest.approx([weight])


# -dL/ds_w and dL/ds_l as functions of s_w and s_l.
WEIGHTS = {
    LSIF: lambda s_w, s_l: (math.exp(s_w), math.exp(2 * s_l)),
    BCE: lambda s_w, s_l: (sigma(-s_w), sigma(s_l)),
    UKL: lambda s_w, s_l: (1, math.exp(s_l)),
    DPO: lambda s_w, s_l: (0.1 * sigma(-0.1 * (s_w - s_l)), 0.1 * sigma(-0.1 * (s_w - s_l))),
}


@pytest.mark.parametrize("loss_type", RATIO_LOSSES)
def test_weights_are_the_paper_s(loss_type, make_pairs, value_and_gradients):
    grid = [(s_w, s_l) for s_w in (-3, -0.5, 0.25, 2) for s_l in (-4, -1, 0.5, 3)]
    s_w, s_l = zip(*grid, strict=True)
    zeros = [0] * len(grid)
    _, grad_w_B, grad_l_B = value_and_gradients(loss_type(reduction=SUM), make_pairs(s_w, s_l, zeros, zeros))
    expected = [WEIGHTS[loss_type](*point) for point in grid]
    assert (-grad_w_B).tolist() == pytest.approx([weight for weight, _ in expected], rel=1e-12)
    assert grad_l_B.tolist() == pytest.approx([weight for _, weight in expected], rel=1e-12)


def test_the_push_on_the_rejected_response_fades_fastest_under_lsif(make_pairs, value_and_gradients):
    """Relative to its weight at s_l = 0: e^{2 s} < e^s < 2 sigma(s); DPO's stays that of the chosen one."""
    pairs = make_pairs([0, 0], [0, -3], [0, 0], [0, 0])
    left = {}
    for loss_type in RATIO_LOSSES:
        _, grad_w_B, grad_l_B = value_and_gradients(loss_type(reduction=SUM), pairs)
        left[loss_type] = (grad_l_B[1] / grad_l_B[0]).item()
        if loss_type is DPO:
            assert torch.equal(grad_l_B, -grad_w_B)
    assert left[LSIF] < left[UKL] < left[BCE] < left[DPO]


def test_slic_is_flat_outside_its_margin_but_for_the_likelihood_term(make_pairs, value_and_gradients):
    pairs = make_pairs([-1, -1, -1], [-1.5, -2, -2.5])  # margins 0.5, 1 (the corner), 1.5
    _, grad_w_B, grad_l_B = value_and_gradients(SLiC(delta=1, lam=0.25), pairs)
    assert grad_w_B.tolist() == [-1.25, -0.25, -0.25]
    assert grad_l_B.tolist() == [1, 0, 0]
