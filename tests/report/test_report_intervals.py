from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from dil_cli.report.intervals import RESAMPLES, bootstrap, paired_difference, t_interval, t_quantile

# Of the printed tables; one and two degrees of freedom also have closed forms.
KNOWN = {
    (0.975, 1): 12.7062047362, (0.975, 2): 4.3026527297, (0.975, 3): 3.1824463053, (0.975, 4): 2.7764451052,
    (0.975, 9): 2.2621571628, (0.975, 29): 2.0452296421, (0.975, 120): 1.9799304051, (0.95, 4): 2.1318467863,
    (0.995, 10): 3.1692726726,
}  # fmt: skip


@pytest.mark.parametrize(("p", "degrees"), KNOWN)
def test_t_quantiles_are_those_of_the_tables(p, degrees):
    assert t_quantile(p, degrees) == pytest.approx(KNOWN[p, degrees], abs=1e-9)


@pytest.mark.parametrize("p", [0.6, 0.9, 0.975, 0.9995])
def test_t_quantiles_have_their_closed_forms(p):
    assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-10)
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) * math.sqrt(2 / (1 - (2 * p - 1) ** 2)), rel=1e-10)
    assert t_quantile(p, 10**6) == pytest.approx(statistics.NormalDist().inv_cdf(p), rel=1e-5)


def test_t_interval_by_hand():
    # Mean 4, standard deviation 2, 4.3027 * 2 / sqrt(3) to each side.
    found = t_interval([2.0, 4.0, 6.0])
    assert (found.mean, found.n) == (4.0, 3)
    assert found.low == pytest.approx(4 - 4.968275, abs=1e-5)
    assert found.high == pytest.approx(4 + 4.968275, abs=1e-5)
    assert not found.above_0
    assert not found.below_0


def test_one_value_has_no_interval():
    found = t_interval([-0.3])
    assert (found.mean, found.low, found.high, found.n) == (-0.3, None, None, 1)
    assert not found.below_0
    with pytest.raises(ValueError, match="no values"):
        t_interval([])


def test_t_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        found = t_interval(generator.normal(1.0, 2.0, 4).tolist())
        inside += found.low <= 1.0 <= found.high
    assert 0.935 < inside / 2000 < 0.965


def test_differences_are_paired_by_seed():
    a = {0: 1.0, 1: 5.0, 2: 9.0, 7: 100.0}
    b = {0: 0.5, 1: 4.4, 2: 8.6, 8: -100.0}
    found = paired_difference(a, b)
    assert found == t_interval([1.0 - 0.5, 5.0 - 4.4, 9.0 - 8.6])
    assert found.above_0  # though the values themselves overlap
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_bootstrap_is_the_same_twice_and_near_the_normal_interval():
    values = np.random.default_rng(3).normal(0.5, 1.0, (400, 1))
    found = bootstrap(values, lambda mean: mean[..., 0])
    assert found == bootstrap(values.copy(), lambda mean: mean[..., 0])
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert found.low == pytest.approx(values.mean() - half, abs=0.012)
    assert found.high == pytest.approx(values.mean() + half, abs=0.012)
    assert found.n == 400


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(2)
    found = [bootstrap(generator.normal(0, 1, (200, 1)), lambda mean: mean[..., 0]) for _ in range(300)]
    assert 0.91 < np.mean([one.low <= 0 <= one.high for one in found]) < 0.98


def test_bootstrap_gives_no_interval_where_a_ratio_has_no_value():
    margins = np.random.default_rng(4).normal(0.0, 1.0, (50, 1))
    margins -= margins.mean()
    found = bootstrap(margins, lambda mean: np.where(mean[..., 0] > 0, mean[..., 0], np.nan))
    assert (found.low, found.high) == (None, None)
    assert bootstrap(np.ones((1, 1)), lambda mean: mean[..., 0]).low is None
    assert RESAMPLES >= 1000
