"""Intervals: Student's t over seeds, and the bootstrap over probe pairs where there is one seed.

N values, P pairs, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from dil_cli.dynamics.statistics import Float64

RESAMPLES = 2000
FLIPS = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and the interval around it; `low` and `high` are None where one value allows none."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def above_0(self) -> bool:
        """Whether all of the interval is above 0; False without an interval."""
        return self.low is not None and self.low > 0

    @property
    def below_0(self) -> bool:
        """Whether all of the interval is below 0; False without an interval."""
        return self.high is not None and self.high < 0


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of N independent values and Student's t interval with N - 1 degrees of freedom.

    Raises:
        ValueError: for no value.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an interval of no values")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(0.5 + level / 2, n - 1) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Interval | None:
    """t interval of a - b over the seeds that both have; None when they share none.

    What a seed does to both, the order of the pairs for one, drops out of the difference.
    """
    seeds = sorted(a.keys() & b.keys())
    return t_interval([a[seed] - b[seed] for seed in seeds], level) if seeds else None


def bootstrap(
    samples_PK: Float64, statistic: Callable[[Float64], Float64], level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of a statistic of means over P pairs, pairs drawn with replacement.

    Args:
        samples_PK: K numbers of each pair.
        statistic: from the means of the K columns, (..., K), to (...); NaN where it has no value.
        level: of the interval.
        seed: always the same, so that a report comes out the same twice.

    Returns:
        The statistic of the pairs as they are, and its interval; no interval for fewer than two pairs, or where more
        than a twentieth of the resamples give no value.
    """
    pairs = len(samples_PK)
    value = float(statistic(samples_PK.mean(axis=0)))
    if pairs < 2:
        return Interval(value, None, None, pairs)
    drawn_R = statistic(_resample(pairs, seed) @ samples_PK)
    drawn_R = drawn_R[np.isfinite(drawn_R)]
    if len(drawn_R) < 0.95 * RESAMPLES:
        return Interval(value, None, None, pairs)
    low, high = np.quantile(drawn_R, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high), pairs)


def wilson(mean: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share of n, which keeps a width where all or none won.

    Values between 0 and 1 may be among them: no such sample varies more than one of wins and losses with its mean.
    """
    if n == 0:
        raise ValueError("an interval of no values")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Interval(mean, max(0.0, middle - half), min(1.0, middle + half), n)


def sign_flip_p(differences_P: Float64, seed: int = 0) -> float:
    """Two-sided p of a mean difference of 0 over P pairs, by flipping the signs of pairs at random.

    Never 0: the differences as they are count among the `FLIPS` + 1 draws.
    """
    random = np.random.default_rng(seed)
    seen = abs(float(differences_P.mean()))
    beyond = 1
    for _ in range(FLIPS // 100):  # in parts, or the signs of many pairs would take gigabytes
        signs = random.integers(0, 2, size=(100, len(differences_P)), dtype=np.int8) * 2 - 1
        beyond += int((np.abs(signs @ differences_P / len(differences_P)) >= seen * (1 - 1e-12)).sum())
    return beyond / (FLIPS + 1)


@cache
def _resample(pairs: int, seed: int) -> Float64:
    """Weight of each pair in each resample, (R, P), rows of sum 1."""
    counts_RP = np.random.default_rng(seed).multinomial(pairs, np.full(pairs, 1 / pairs), size=RESAMPLES)
    weights: Float64 = counts_RP / pairs
    return weights


@cache
def t_quantile(p: float, degrees: int) -> float:
    """The value that Student's t stays below with probability p, 0.5 <= p < 1; by bisection."""
    low, high = 0.0, 1.0
    while _t_below(high, degrees) < p:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _t_below(middle, degrees) < p else (low, middle)
    return (low + high) / 2


def _t_below(t: float, degrees: int) -> float:
    """P(T < t) for t >= 0."""
    return 1 - 0.5 * _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (DLMF 8.17.22) and Lentz's method."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly; the other side's is quick
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            step = c * d
            value *= step
        if abs(step - 1) < 1e-15:
            break
    return math.exp(log_front) * value / a
