"""Each loss by hand, its gradient by finite differences, and what the DIL paper says of the losses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dil_cli.losses import BCE, DPO, LSIF, SFT, UKL, Reduction, SimPO, SLiC

LOG2, LOG3 = math.log(2), math.log(3)
SUM = Reduction.sum
RATIO_LOSSES = [LSIF, BCE, UKL, DPO]
ALL_LOSSES = [SFT, *RATIO_LOSSES, SLiC, SimPO]


def sigma(x):
    return 1 / (1 + math.exp(-x))


# Summed log-probs: chosen -6 over 3 tokens, rejected -10 over 2. Reference: log-ratios log 8 over 3 tokens
# and -log 9 over 2, so per token s_w = log 2, s_l = -log 3; and p_w = -2, p_l = -5.
BY_HAND = [
    (SFT(), 2),
    (SFT(reduction=SUM), 6),
    (LSIF(), -2 + 1 / 18),
    (LSIF(reduction=SUM), -8 + 1 / 162),
    (BCE(), math.log(3 / 2) + math.log(4 / 3)),
    (BCE(reduction=SUM), math.log(9 / 8) + math.log(10 / 9)),
    (UKL(), -LOG2 + 1 / 3),
    (UKL(reduction=SUM), -3 * LOG2 + 1 / 9),
    (DPO(beta=1), math.log(73 / 72)),
    (DPO(beta=1, reduction=Reduction.mean), math.log(7 / 6)),
    (DPO(beta=0.5), math.log(1 + 72**-0.5)),
    (SLiC(), 0.2),
    (SLiC(delta=4), 1.2),
    (SLiC(delta=4, lam=0.5), 2),
    (SLiC(delta=4, lam=0.5, reduction=SUM), 3),
    (SLiC(delta=5, lam=0.5, reduction=SUM), 4),
    (SimPO(), math.log1p(math.exp(1.6 - 6))),
    (SimPO(beta=0.5, gamma=1), math.log1p(math.exp(-0.5))),
]


@pytest.fixture
def pair(make_pairs):
    return make_pairs([-6], [-10], [-6 - 3 * LOG2], [-10 + 2 * LOG3], tokens=([3], [2]))


@pytest.mark.parametrize(("loss", "value"), BY_HAND, ids=lambda x: x.name if hasattr(x, "name") else "")
def test_value_by_hand(loss, value, pair):
    assert loss(pair).loss_B.tolist() == pytest.approx([value], rel=1e-12)


def test_every_loss_has_a_value_by_hand():
    assert {type(loss) for loss, _ in BY_HAND} == set(ALL_LOSSES)


def every_loss():
    """All losses, under each reduction that they accept."""
    both = [(loss, reduction) for loss in ALL_LOSSES for reduction in Reduction]
    return [loss(reduction=reduction) for loss, reduction in both if (loss, reduction) != (SimPO, SUM)]


@pytest.fixture
def random_pairs(make_pairs):
    generator = torch.Generator().manual_seed(7)
    columns = 2 * torch.randn(4, 6, generator=generator, dtype=torch.float64) - 8
    return make_pairs(*columns.tolist(), tokens=([1, 2, 3, 5, 8, 13], [4, 1, 9, 2, 7, 3]))


@pytest.mark.parametrize("loss", every_loss(), ids=lambda loss: f"{loss.name}-{loss.reduction.value}")
def test_gradcheck(loss, random_pairs):
    def value(chosen_B, rejected_B):
        return loss(replace(random_pairs, policy_chosen_B=chosen_B, policy_rejected_B=rejected_B)).loss_B

    leaves = (random_pairs.policy_chosen_B, random_pairs.policy_rejected_B)
    assert torch.autograd.gradcheck(value, [x_B.clone().requires_grad_() for x_B in leaves])


@pytest.mark.parametrize("loss", every_loss(), ids=lambda loss: f"{loss.name}-{loss.reduction.value}")
def test_order_of_pairs_does_not_matter(loss, random_pairs):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = loss(random_pairs.map(lambda x_B: x_B[order])).loss_B
    alone = torch.cat([loss(random_pairs.map(lambda x_B, i=i: x_B[i : i + 1])).loss_B for i in range(6)])
    assert torch.equal(shuffled, loss(random_pairs).loss_B[order])
    assert torch.equal(alone, loss(random_pairs).loss_B)


@pytest.mark.parametrize("loss", every_loss(), ids=lambda loss: f"{loss.name}-{loss.reduction.value}")
def test_value_at_the_reference(loss, random_pairs):
    same = replace(
        random_pairs,
        reference_chosen_B=random_pairs.policy_chosen_B,
        reference_rejected_B=random_pairs.policy_rejected_B,
    )
    values = loss(same).loss_B.tolist()
    known = {"lsif": -0.5, "bce": 1.386294361119891, "ukl": 1.0, "dpo": 0.693147180559945}
    if loss.name in known:
        assert loss.at_reference() == pytest.approx(known[loss.name], rel=1e-15)
        assert values == pytest.approx([known[loss.name]] * len(values), rel=1e-14)
    else:
        assert loss.at_reference() is None
        assert len(set(values)) == len(values)


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
