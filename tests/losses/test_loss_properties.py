"""What must hold for every loss and any input: drawn by hypothesis, checked for all of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from every_loss import EVERY, label
from hypothesis import given, settings
from hypothesis import strategies as st

from dil_cli.losses import PreferenceLoss, ReferenceSamples
from dil_cli.types import PairLogps

FEW = settings(max_examples=30, deadline=None, derandomize=True)

# Losses whose margin or response has a target beyond which they turn round, by their own formula.
TURNING = {"cdpo", "ipo", "exo", "nca", "apo_down", "cal_dpo", "sppo", "combine"}


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, width=32)


@st.composite
def batches(draw: st.DrawFn, dtype: torch.dtype = torch.float32, largest: float = 500.0) -> PairLogps:
    """1 to 5 pairs: responses of 1 to 4,096 tokens, log-probs at most 0, log-ratios up to `largest` either way."""
    size = draw(st.integers(1, 5))

    def column(strategy: st.SearchStrategy[float]) -> torch.Tensor:
        return torch.tensor(draw(st.lists(strategy, min_size=size, max_size=size)), dtype=dtype)

    policy = [-column(numbers(0, 2000)) for _ in range(2)]
    ratio = [column(numbers(-largest, largest)) for _ in range(2)]
    reference = [(p - s).clamp(max=0) for p, s in zip(policy, ratio, strict=True)]
    tokens = [column(st.integers(1, 4096)).long().clamp(1, 4096) for _ in range(2)]
    return PairLogps(*policy, *tokens, *reference)


def derivatives(loss: PreferenceLoss, pairs: PairLogps) -> list[torch.Tensor]:
    """Value, and slope by the summed log-prob of the chosen and of the rejected response, (B,) each."""
    leaves = [pairs.policy_chosen_B.clone().requires_grad_(), pairs.policy_rejected_B.clone().requires_grad_()]
    out = loss(replace(pairs, policy_chosen_B=leaves[0], policy_rejected_B=leaves[1])).loss_B
    return [out.detach(), *torch.autograd.grad(out.sum(), leaves, materialize_grads=True)]


def check_finite(pairs: PairLogps) -> None:
    for loss in EVERY:
        value_B, slope_w_B, slope_l_B = derivatives(loss, pairs)
        assert value_B.dtype == torch.float32, label(loss)
        for x_B in (value_B, slope_w_B, slope_l_B):
            assert x_B.isfinite().all(), f"{label(loss)}: {x_B}"


@FEW
@given(batches(torch.float32))
def test_float32_gives_no_infinity_and_no_nan(pairs):
    check_finite(pairs)


@FEW
@given(batches(torch.bfloat16))
def test_bfloat16_gives_no_infinity_and_no_nan(pairs):
    check_finite(pairs)


@FEW
@given(batches(torch.float64, largest=20.0))
def test_a_loss_falls_when_the_chosen_rises_and_the_rejected_falls(pairs):
    """dL/ds_w <= 0 and dL/ds_l >= 0 wherever the formula promises it: without a target to overshoot."""
    promised = [loss for loss in EVERY if loss.name not in TURNING]
    promised = [loss for loss in promised if getattr(loss, "reference_samples", None) != ReferenceSamples.both]
    promised = [loss for loss in promised if loss.name != "aot" or loss.epsilon == 0]
    assert len(promised) > 60
    for loss in promised:
        _, slope_w_B, slope_l_B = derivatives(loss, pairs)
        assert (slope_w_B <= 0).all(), f"{label(loss)}: {slope_w_B}"
        assert (slope_l_B >= 0).all(), f"{label(loss)}: {slope_l_B}"


@FEW
@given(batches(torch.float64))
def test_at_the_reference_the_first_step_goes_the_right_way(pairs):
    """Targets included: where policy = reference each loss pulls the chosen up or lets it be, and pushes the other."""
    same = replace(pairs, reference_chosen_B=pairs.policy_chosen_B, reference_rejected_B=pairs.policy_rejected_B)
    for loss in EVERY:
        _, slope_w_B, slope_l_B = derivatives(loss, same)
        at_rest = loss.name == "apo_down"
        assert ((slope_w_B.abs() < 1e-15) if at_rest else (slope_w_B <= 0)).all(), f"{label(loss)}: {slope_w_B}"
        assert (slope_l_B >= 0).all(), f"{label(loss)}: {slope_l_B}"
        if loss.at_reference() is not None:
            known_B = torch.full_like(pairs.policy_chosen_B, loss.at_reference())
            torch.testing.assert_close(loss(same).loss_B, known_B, rtol=1e-12, atol=1e-12)


@FEW
@given(batches(torch.float64, largest=20.0), st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(pairs, random):
    index = list(range(len(pairs.chosen_tokens_B)))
    random.shuffle(index)
    order = torch.tensor(index)
    shuffled = pairs.map(lambda x_B: x_B[order])
    for loss in EVERY:
        once, again = derivatives(loss, pairs), derivatives(loss, shuffled)
        if loss.name == "aot" or label(loss).startswith("combine"):  # equal margins may change places
            torch.testing.assert_close(again[0].mean(), once[0].mean(), rtol=1e-12, atol=1e-12)
            continue
        for x_B, y_B in zip(once, again, strict=True):
            torch.testing.assert_close(y_B, x_B[order], rtol=1e-9, atol=1e-12, msg=label(loss))


@FEW
@given(batches(torch.float64), st.integers(0, 4))
def test_the_response_that_is_not_there_changes_nothing(pairs, seed):
    """A loss that needs no reference does not look at one, one that needs no rejected response at none."""
    noise = torch.Generator().manual_seed(seed)
    for loss in EVERY:
        other = pairs
        if not loss.needs_reference:
            shift_B = torch.rand(len(pairs.chosen_tokens_B), generator=noise, dtype=torch.float64)
            other = replace(other, reference_chosen_B=pairs.reference_chosen_B - shift_B, reference_rejected_B=None)
        if not loss.needs_rejected:
            other = replace(other, policy_rejected_B=pairs.policy_rejected_B - 1)
        assert torch.equal(loss(other).loss_B, loss(pairs).loss_B), label(loss)
