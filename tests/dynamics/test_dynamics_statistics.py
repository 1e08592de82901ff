"""Two pairs worked out by hand.

| | chosen | rejected |
|---|---|---|
| tokens | 4, 2 | 3, 4 |
| policy, sum | -4, -6 | -6, -4 |
| policy, per token | -1, -3 | -2, -1 |
| reference, sum | -6, -5 | -3, -6 |
| s, sum | 2, -1 | -3, 2 |
| s, per token | 0.5, -0.5 | -1, 0.5 |
| at step 0, sum | -3, -5 | -3, -4 |
| change per token | -0.25, -0.5 | -1, 0 |
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dil_cli.dynamics.statistics import MIN_MARGIN_GAIN, pair_statistics
from dil_cli.types import PairLogps


def pairs(chosen, rejected, chosen_tokens=(4, 2), rejected_tokens=(3, 4), reference=(None, None)):
    sums = [torch.tensor(values, dtype=torch.float32) for values in (chosen, rejected)]
    counts = [torch.tensor(values) for values in (chosen_tokens, rejected_tokens)]
    references = [None if values is None else torch.tensor(values) for values in reference]
    return PairLogps(*sums, *counts, *references)


NOW = pairs([-4, -6], [-6, -4], reference=([-6.0, -5.0], [-3.0, -6.0]))
START = pairs([-3, -5], [-3, -4])


def test_likelihoods_per_token_and_summed():
    values = pair_statistics(NOW, "mean")
    assert values["logps/chosen"] == -2
    assert values["logps/rejected"] == -1.5
    assert values["logps_sum/chosen"] == -5
    assert values["logps_sum/rejected"] == -5


def test_log_ratios_under_the_mean():
    values = pair_statistics(NOW, "mean")
    assert values["logratio/chosen"] == 0
    assert values["logratio/rejected"] == -0.25
    assert values["ratio/chosen"] == pytest.approx((math.exp(0.5) + math.exp(-0.5)) / 2, rel=1e-15)
    assert values["ratio/rejected"] == pytest.approx((math.exp(-1) + math.exp(0.5)) / 2, rel=1e-15)
    assert values["margin"] == values["margin_mean"] == 0.25  # 1.5 and -1
    assert values["accuracy"] == 0.5


def test_log_ratios_under_the_sum_keep_the_mean_margin():
    values = pair_statistics(NOW, "sum")
    assert values["logratio/chosen"] == 0.5
    assert values["logratio/rejected"] == -0.5
    assert values["ratio/rejected"] == pytest.approx((math.exp(-3) + math.exp(2)) / 2, rel=1e-15)
    assert values["margin"] == 1  # 5 and -3
    assert values["margin_mean"] == 0.25


def test_a_share_of_sums_and_one_of_means_are_told_apart():
    # A long chosen response falls by 2 nats in 8 tokens, the rejected one by 1 nat in 2: per token the margin grows.
    now = pairs([-10], [-5], [8], [2], reference=([-8.0], [-4.0]))
    of_sum, of_mean = (pair_statistics(now, reduction) for reduction in ("sum", "mean"))
    assert (of_sum["accuracy"], of_mean["accuracy"]) == (0, 1)
    assert of_sum["accuracy_mean"] == of_mean["accuracy_mean"] == 1


def test_a_tie_counts_half():
    same = replace(NOW, reference_chosen_B=NOW.policy_chosen_B, reference_rejected_B=NOW.policy_rejected_B)
    values = pair_statistics(same, "mean")
    assert values["accuracy"] == 0.5
    assert values["margin"] == 0
    last_bit = replace(same, policy_chosen_B=NOW.policy_chosen_B * (1 + 1e-6))
    assert pair_statistics(last_bit, "mean")["accuracy"] == pair_statistics(last_bit, "sum")["accuracy"] == 0.5
    up = replace(same, policy_chosen_B=torch.tensor([-3.0, -6.0]))
    assert pair_statistics(up, "mean")["accuracy"] == 0.75


def test_change_since_step_0():
    values = pair_statistics(NOW, "mean", START)
    assert values["delta/chosen"] == -0.375
    assert values["delta/rejected"] == -0.5
    assert values["delta/margin"] == 0.125  # 0.75 and -0.5
    assert values["chosen_cost"] == 3
    assert values["both_falling"] == 0.5  # the second pair's rejected stayed
    assert values["delta/chosen/p10"] == pytest.approx(-0.475, rel=1e-15)
    assert values["delta/chosen/p50"] == -0.375
    assert values["delta/chosen/p90"] == pytest.approx(-0.275, rel=1e-15)
    assert values["delta/rejected/p10"] == pytest.approx(-0.9, rel=1e-15)
    assert values["delta/margin/p90"] == pytest.approx(0.625, rel=1e-15)


def test_cost_is_absent_until_the_margin_has_grown():
    before = pairs([-4.0], [-4.0], [4], [4])
    at_step_0 = pair_statistics(before, "mean", before)
    assert at_step_0["delta/margin"] == 0
    assert "chosen_cost" not in at_step_0
    for gain, there in ((0.9 * MIN_MARGIN_GAIN, False), (1.1 * MIN_MARGIN_GAIN, True), (-0.5, False)):
        later = pairs([-4.4], [-4.4 - 4 * gain], [4], [4])
        assert ("chosen_cost" in pair_statistics(later, "mean", before)) is there


def test_without_a_reference_there_are_no_ratios():
    names = set(pair_statistics(START, "mean"))
    assert names == {"logps/chosen", "logps/rejected", "logps_sum/chosen", "logps_sum/rejected"}


def test_a_demonstration_has_chosen_numbers_only():
    now = pairs([-4, -6], [0, 0], rejected_tokens=[0, 0], reference=([-6.0, -5.0], [0.0, 0.0]))
    values = pair_statistics(now, "mean", pairs([-3, -5], [0, 0], rejected_tokens=[0, 0]))
    assert values["delta/chosen"] == -0.375
    assert values["logratio/chosen"] == 0
    assert not any("rejected" in name or "margin" in name for name in values)
    assert not {"accuracy", "accuracy_mean", "both_falling", "chosen_cost"} & set(values)


def test_an_extreme_ratio_is_shown_finite():
    far = pairs([0.0], [-900.0], [1], [1], reference=([-900.0], [0.0]))
    values = pair_statistics(far, "mean")
    assert values["logratio/chosen"] == 900
    assert values["ratio/chosen"] == math.exp(80)
    assert values["ratio/rejected"] == 0


def test_arithmetic_is_float64():
    a, b = -1000.0001220703125, -1000.0  # neighbours 2 ulp apart in float32
    now, start = pairs([a], [b], [3], [3]), pairs([b], [b], [3], [3])
    assert pair_statistics(now, "mean", start)["delta/chosen"] == a / 3 - b / 3


def test_another_number_of_pairs_is_refused():
    with pytest.raises(ValueError, match="2 pairs now, 1 at step 0"):
        pair_statistics(NOW, "mean", pairs([-1], [-1], [1], [1]))
