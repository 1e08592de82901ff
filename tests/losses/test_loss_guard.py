"""The guarded exponential, what the losses report of it, and extreme or degenerate input."""

from __future__ import annotations

import math

import pytest
import torch
from every_loss import EVERY, label, usual

from dil_cli.losses import BCE, DPO, LOSSES, LSIF, SFT, UKL, Bregman, Reduction, ReferenceSamples, SimPO, SLiC
from dil_cli.losses.common import beyond_cap, box_cox, expm1, guarded_exp, guarded_expm1, sigmoid, softplus
from dil_cli.losses.dpo import Divergence

SUM, BOTH = Reduction.sum, ReferenceSamples.both
E30 = math.exp(30)


def value_and_slope(function, x_B):
    x_B = x_B.clone().requires_grad_()
    y_B = function(x_B)
    return y_B.detach(), torch.autograd.grad(y_B.sum(), x_B)[0]


def test_guarded_exp_is_exact_up_to_the_cap_and_its_tangent_above():
    x_B = torch.tensor([-500, -1, 0, 29, 30, 31, 500, 5e4], dtype=torch.float64)
    y_B, slope_B = value_and_slope(lambda x_B: guarded_exp(x_B, 30.0), x_B)
    below_B = x_B <= 30
    assert torch.equal(y_B[below_B], x_B[below_B].exp())
    assert torch.equal(slope_B[below_B], x_B[below_B].exp())
    assert y_B[~below_B].tolist() == pytest.approx([2 * E30, 471 * E30, 49971 * E30], rel=1e-14)
    assert slope_B[~below_B].tolist() == pytest.approx([E30] * 3, rel=1e-14)


def test_value_and_slope_are_continuous_at_the_cap():
    step = 1e-9
    x_B = torch.tensor([2 - step, 2, 2 + step], dtype=torch.float64)
    y_B, slope_B = value_and_slope(lambda x_B: guarded_exp(x_B, 2.0), x_B)
    assert (y_B[1:] - y_B[:-1]).tolist() == pytest.approx([step * math.exp(2)] * 2, rel=1e-6)
    assert slope_B.tolist() == pytest.approx([math.exp(2)] * 3, rel=1e-8)


def test_guarded_exp_gradcheck_on_both_sides():
    x_B = torch.tensor([-3, 0.5, 1.9, 2.1, 40], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x_B: guarded_exp(x_B, 2.0), [x_B])


@pytest.mark.parametrize("cap", [1e-3, 30.0, 40.0])
def test_guarded_exp_stays_finite_in_float32_where_the_exponential_does_not(cap):
    x_B = torch.tensor([-math.inf, -5e4, -500, 89, 500, 5e4])
    y_B, slope_B = value_and_slope(lambda x_B: guarded_exp(x_B, cap), x_B)
    assert torch.isfinite(y_B).all()
    assert torch.isfinite(slope_B.square()).all()  # a gradient norm squares it
    assert slope_B[:3].tolist() == [0, 0, 0]
    assert (slope_B[3:] > 0).all()


def test_without_a_cap_it_is_the_exponential():
    x_B = torch.tensor([-1.0, 50.0, 100.0])
    assert torch.equal(guarded_exp(x_B, None), x_B.exp())
    assert beyond_cap(None, x_B) is None


def test_expm1_and_sigmoid_keep_their_digits_in_float32():
    """Value and slope against float64, where torch's own slopes have lost theirs."""
    x_B = torch.tensor([-60.0, -20.0, -10.0, -1e-6, 0.0, 1e-6, 0.3, 10.0, 18.0])
    for function, slope in (
        (expm1, lambda x: x.exp()),
        (sigmoid, lambda x: 1 / (2 + x.exp() + (-x).exp())),
        (lambda x: guarded_expm1(x, 30.0), lambda x: x.exp()),
    ):
        y_B, slope_B = value_and_slope(function, x_B)
        exact_B = value_and_slope(function, x_B.double())[0]
        torch.testing.assert_close(y_B.double(), exact_B, rtol=1e-5, atol=0)
        torch.testing.assert_close(slope_B.double(), slope(x_B.double()), rtol=1e-5, atol=0)
    lost = value_and_slope(torch.sigmoid, x_B)[1][-1] / slope(x_B)[-1] - 1
    assert abs(float(lost)) > 0.1


def test_guarded_expm1_is_the_guarded_exponential_less_one():
    x_B = torch.tensor([-500, -1, 0.5, 30, 31, 500, 5e4], dtype=torch.float64)
    y_B, slope_B = value_and_slope(lambda x_B: guarded_expm1(x_B, 30.0), x_B)
    z_B, other_B = value_and_slope(lambda x_B: guarded_exp(x_B, 30.0), x_B)
    torch.testing.assert_close(y_B, z_B - 1, rtol=1e-15, atol=0)
    torch.testing.assert_close(slope_B, other_B, rtol=1e-15, atol=0)


@pytest.mark.parametrize("k", [-2, -1, 0, 0.5, 3])
def test_box_cox_has_slope_r_to_the_k(k):
    s_B = torch.tensor([-4, -0.5, 0, 0.25, 3], dtype=torch.float64)
    y_B, slope_B = value_and_slope(lambda s_B: box_cox(s_B, k, 30.0), s_B)
    expected = [(math.exp(k * s) - 1) / k if k else s for s in s_B.tolist()]
    assert y_B.tolist() == pytest.approx(expected, rel=1e-12)
    assert slope_B.tolist() == pytest.approx([math.exp(k * s) for s in s_B.tolist()], rel=1e-12)


def test_under_both_a_ratio_beyond_the_guard_is_still_pushed_back(make_pairs, value_and_gradients):
    """dL/ds_w = -h'' r_w (1 - r_w / 2) is positive above r_w = 2; guarded terms must not turn it round."""
    s = [1.0, 14.0, 16.0, 29.0, 31.0, 100.0, 500.0]
    pairs = make_pairs(s, [0] * 7, [0] * 7, [0] * 7)
    losses = [LSIF, UKL, *(lambda alpha=alpha, **kw: LOSSES["power"](alpha=alpha, **kw) for alpha in (0.5, 1, 3))]
    for build in losses:
        _, grad_w_B, _ = value_and_gradients(build(reduction=SUM, reference_samples=BOTH), pairs)
        assert (grad_w_B > 0).all()
        assert grad_w_B.isfinite().all()


# What leaves its exact range where: (loss, s_w, s_l, guarded), sums over one token, cap 30.
GUARDED = [
    (LOSSES["power"](alpha=2, reduction=SUM), [[14, 0, 0], [16, 0, 0], [0, 9, 0], [0, 11, 0]], [0, 1, 0, 1]),
    (LOSSES["power"](alpha=-2, reduction=SUM), [[-14, 0], [-16, 0], [0, -29], [0, -31]], [0, 1, 0, 1]),
    (LOSSES["jeffreys"](reduction=SUM), [[-29, 29], [-31, 0], [0, 31], [500, -500]], [0, 1, 1, 0]),
    (LOSSES["fdpo"](divergence=Divergence.forward_kl), [[-29, 0], [-31, 0], [0, -31], [500, 500]], [0, 1, 1, 0]),
    (LOSSES["fdpo"](divergence=Divergence.alpha, alpha=0.5), [[-59, 0], [-61, 0], [0, -61]], [0, 1, 1]),
    (LOSSES["simper"](), [[-1, -1], [0, 0], [0.1, -1], [-1, 0.1]], [0, 0, 1, 1]),
    (LOSSES["ukl_official"](), [[31, 0], [0, 29], [0, 31]], [0, 0, 1]),
    (Bregman(h=lambda r: r**2, reduction=SUM), [[14, 0], [16, 0], [0, -16], [0, 14]], [0, 1, 1, 0]),
    (Bregman(h="ukl", reduction=SUM), [[31, 29], [0, 31]], [0, 1]),
]


@pytest.mark.parametrize(("loss", "points", "guarded"), GUARDED, ids=label)
def test_guards_act_where_they_say(loss, points, guarded, make_pairs):
    zeros = [0] * len(points)
    pairs = make_pairs([p[0] for p in points], [p[1] for p in points], zeros, zeros)
    assert loss(pairs).guarded_B.tolist() == [bool(flag) for flag in guarded]


def test_a_function_of_one_s_own_goes_on_along_its_tangents(make_pairs, value_and_gradients):
    """h = r^2: pull -2 r_w, push r_l^2; beyond |s| = 15 each on its tangent, on both sides."""
    pairs = make_pairs([16, -16, 0, 0], [0, 0, 16, -16], [0] * 4, [0] * 4)
    value_B, grad_w_B, grad_l_B = value_and_gradients(Bregman(h=lambda r: r**2, reduction=SUM), pairs)
    e = math.exp
    assert value_B.tolist() == pytest.approx([1 - 4 * e(15), 1, 3 * e(30) - 2, -2 - e(-30)], rel=1e-12)
    assert grad_w_B.tolist() == pytest.approx([-2 * e(15), -2 * e(-15), -2, -2], rel=1e-12)
    assert grad_l_B.tolist() == pytest.approx([2, 2, 2 * e(30), 2 * e(-30)], rel=1e-12)


def test_orpo_survives_a_certain_response(make_pairs, value_and_gradients):
    """At p = 0 the log-odds are infinite; they go on along their tangent above p = -1e-7."""
    pairs = make_pairs([-1e-7, 0, -1, 0.5], [-1, -1, 0, 0], dtype=torch.float32)
    loss = LOSSES["orpo"](lam=1)
    value_B, grad_w_B, grad_l_B = value_and_gradients(loss, pairs)
    assert loss(pairs).guarded_B.tolist() == [False, True, True, True]
    assert all(x_B.isfinite().all() for x_B in (value_B, grad_w_B, grad_l_B))
    odds = math.exp(-1) / (1 - math.exp(-1))
    assert grad_w_B[0].item() == pytest.approx(-1 - odds, rel=1e-5)  # g / (1 - e^p) tends to the other's odds
    assert grad_l_B[2].item() == pytest.approx(1e7, rel=1e-5)  # the slope of the log-odds at p = -1e-7


def test_lsif_guards_both_exponents_and_says_where(make_pairs, value_and_gradients):
    # Exponents s_w and 2 s_l: within; s_w beyond; exactly at the cap; 2 s_l beyond, though s_l is not; both.
    pairs = make_pairs([1, 31, 30, 0, 32], [1, 0, 15, 16, 500], [0] * 5, [0] * 5)
    loss = LSIF(reduction=SUM)
    value_B, grad_w_B, grad_l_B = value_and_gradients(loss, pairs)
    assert loss(pairs).guarded_B.tolist() == [False, True, False, True, True]
    e = math.exp
    assert value_B.tolist() == pytest.approx(
        [e(2) / 2 - e(1), 0.5 - 2 * E30, E30 / 2 - E30, 3 * E30 / 2 - 1, 971 * E30 / 2 - 3 * E30], rel=1e-14
    )
    assert grad_w_B.tolist() == pytest.approx([-e(1), -E30, -E30, -1, -E30], rel=1e-14)
    assert grad_l_B.tolist() == pytest.approx([e(2), 1, E30, E30, E30], rel=1e-14)


def test_ukl_guards_the_rejected_exponent_only(make_pairs, value_and_gradients):
    pairs = make_pairs([500, 0, 0], [0, 30, 31], [0] * 3, [0] * 3)
    loss = UKL(reduction=SUM)
    value_B, grad_w_B, grad_l_B = value_and_gradients(loss, pairs)
    assert loss(pairs).guarded_B.tolist() == [False, False, True]
    assert value_B.tolist() == pytest.approx([-499, E30, 2 * E30], rel=1e-14)
    assert grad_w_B.tolist() == [-1, -1, -1]
    assert grad_l_B.tolist() == pytest.approx([1, E30, E30], rel=1e-14)


@pytest.mark.parametrize("loss_type", [LSIF, UKL])
def test_exp_cap_moves_or_removes_the_guard(loss_type, make_pairs):
    pairs = make_pairs([0], [3], [0], [0])
    exact = loss_type(exp_cap=None)(pairs)
    low = loss_type(exp_cap=2)(pairs)
    assert exact.guarded_B is None
    assert loss_type()(pairs).guarded_B.tolist() == [False]
    assert low.guarded_B.tolist() == [True]
    x = {LSIF: 6, UKL: 3}[loss_type]  # e^x is the rejected term, halved in LSIF
    part = (math.exp(x) - math.exp(2) * (x - 1)) * {LSIF: 0.5, UKL: 1}[loss_type]
    assert (exact.loss_B - low.loss_B).item() == pytest.approx(part, rel=1e-12)


def test_the_guard_sees_means_under_mean(make_pairs):
    pairs = make_pairs([0, 0], [50, 50], [0, 0], [0, 0], tokens=([1, 1], [1, 2]))
    assert UKL()(pairs).guarded_B.tolist() == [True, False]


def test_flags_carry_no_gradient_and_are_absent_where_there_is_no_guard(make_pairs):
    pairs = make_pairs([500], [500], [0], [0])
    for loss in (SFT(), BCE(), DPO(), SLiC(), SimPO()):
        assert loss(pairs).guarded_B is None
    flags = LSIF()(pairs.map(lambda x_B: x_B.clone().requires_grad_() if x_B.is_floating_point() else x_B))
    assert flags.guarded_B.dtype == torch.bool
    assert flags.loss_B.requires_grad


@pytest.mark.parametrize("size", [500, 5e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", EVERY, ids=label)
def test_extreme_log_ratios_are_finite(loss, dtype, size, make_pairs, value_and_gradients):
    signs = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    rows = [(s_w * size, s_l * size, n) for s_w, s_l in signs for n in (1, 4096)]
    chosen, rejected, tokens = zip(*rows, strict=True)
    zeros = [0] * len(rows)
    pairs = make_pairs(chosen, rejected, zeros, zeros, tokens=(tokens, tokens), dtype=dtype)
    for coupled in (True, False):
        for x_B in value_and_gradients(loss, pairs, coupled=coupled):
            assert torch.isfinite(x_B).all()


def test_dpo_and_simpo_are_linear_far_out(make_pairs, value_and_gradients):
    pairs = make_pairs([-5e4, 5e4], [0, 0], [0, 0], [0, 0], dtype=torch.float32)
    for loss, scale, margin in ((DPO(beta=2), 2, 0), (SimPO(beta=2, gamma=1), 2, 1)):
        value_B, grad_w_B, grad_l_B = value_and_gradients(loss, pairs)
        assert value_B.tolist() == [scale * 5e4 + margin, 0]
        assert grad_w_B.tolist() == [-scale, 0]
        assert grad_l_B.tolist() == [scale, 0]


def test_softplus_keeps_its_digits_where_torch_s_own_drops_them():
    x_B = torch.tensor([-40, -20.5, 0, 20.5, 36], dtype=torch.float64)
    y_B, slope_B = value_and_slope(softplus, x_B)
    assert y_B.tolist() == pytest.approx([max(x, 0) + math.log1p(math.exp(-abs(x))) for x in x_B.tolist()], rel=1e-15)
    assert (1 - slope_B[3:]).tolist() == pytest.approx([math.exp(-20.5), math.exp(-36)], rel=1e-2)


@pytest.mark.parametrize("reduction", Reduction)
def test_a_demonstration_has_no_rejected_response(reduction, make_pairs, value_and_gradients):
    pairs = make_pairs([-6, -8], [0, 0], tokens=([3, 4], [0, 0]))
    value_B, grad_w_B, grad_l_B = value_and_gradients(SFT(reduction=reduction), pairs)
    assert value_B.tolist() == ([2, 2] if reduction == Reduction.mean else [6, 8])
    assert grad_w_B.tolist() == pytest.approx([-1 / 3, -1 / 4] if reduction == Reduction.mean else [-1, -1])
    assert grad_l_B.tolist() == [0, 0]


@pytest.mark.parametrize("loss", EVERY, ids=label)
def test_a_count_of_zero_makes_no_nan(loss, make_pairs, value_and_gradients):
    pairs = make_pairs([-6], [0], [-5], [0], tokens=([3], [0]))
    for x_B in value_and_gradients(loss, pairs):
        assert torch.isfinite(x_B).all()


@pytest.mark.parametrize("loss", EVERY, ids=label)
def test_bfloat16_input_is_computed_in_float32(loss, make_pairs):
    columns = ([-100.5, -3], [-80, -7.25], [-101, -2.5], [-79.5, -7.5])
    tokens = ([7, 3], [9, 11])
    low = loss(make_pairs(*columns, tokens=tokens, dtype=torch.bfloat16)).loss_B
    full = loss(make_pairs(*columns, tokens=tokens, dtype=torch.float32)).loss_B
    assert low.dtype == torch.float32
    # -100.5 and -79.5 need eight bits, which bfloat16 has: the inputs are the same numbers.
    assert torch.equal(low, full)


@pytest.mark.parametrize("name", [name for name in LOSSES if usual(name).needs_reference])
def test_a_float64_reference_makes_the_loss_float64(name, make_pairs):
    single = make_pairs([-2], [-3], dtype=torch.float32)
    double = make_pairs([-2], [-3], [-2], [-3])
    mixed = make_pairs([-2], [-3], [-2], [-3], dtype=torch.float32)
    mixed = type(mixed)(**{**vars(double), "policy_chosen_B": single.policy_chosen_B})
    assert usual(name)(mixed).loss_B.dtype == torch.float64
