"""Order statistics, robust deviations and Student's t against scipy and simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from pytest_kerneltune.statistics import (
    fewest_values,
    median_error,
    median_interval,
    pooled_deviation,
    robust_deviation,
    student_quantile,
)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99, 0.996, 0.999])
def test_interval_is_scipys(confidence: float) -> None:
    rng = random.Random(1)
    for count in range(fewest_values(confidence), 90):
        values = [rng.lognormvariate(0, 1) for _ in range(count)]
        interval = median_interval(values, confidence)
        test = scipy.stats.quantile_test(values, q=0, p=0.5)
        assert (interval.low, interval.high) == tuple(test.confidence_interval(confidence))
        assert interval.estimate == scipy.stats.quantile(values, 0.5)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.9375, 0.95, 0.996])
def test_interval_needs_just_the_fewest_values(confidence: float) -> None:
    values = list(map(float, range(fewest_values(confidence))))
    assert median_interval(values, confidence).high == values[-1]
    with pytest.raises(ValueError, match=f"too few .* takes {len(values)}"):
        median_interval(values[1:], confidence)


def test_interval_holds_the_median_of_a_skewed_distribution() -> None:
    rng = random.Random(2)
    held = 0
    for _ in range(1000):
        values = [rng.lognormvariate(0, 1) * (5 if rng.random() < 0.04 else 1) for _ in range(32)]
        interval = median_interval(values, 0.95)
        held += interval.low <= 1.06 <= interval.high  # the mixture's median
    assert 930 <= held <= 990


@given(st.lists(st.floats(-1e6, 1e6), min_size=9, max_size=40))
def test_interval_encloses_its_estimate(values: list[float]) -> None:
    interval = median_interval(values, 0.996)
    assert min(values) <= interval.low <= interval.estimate <= interval.high <= max(values)


def test_robust_deviation_is_scipys_and_unmoved_by_an_outlier() -> None:
    rng = random.Random(3)
    values = [rng.gauss(5, 2) for _ in range(99)]
    assert robust_deviation(values) == pytest.approx(scipy.stats.median_abs_deviation(values, scale="normal"), rel=1e-4)
    assert robust_deviation([*values, 1e9]) == pytest.approx(robust_deviation(values), rel=0.1)


def test_median_error_is_that_of_simulated_medians() -> None:
    rng = random.Random(4)
    medians = [sorted(rng.gauss(0, 1) for _ in range(65))[32] for _ in range(1000)]
    assert median_error(1.0, 65) == pytest.approx(scipy.stats.tstd(medians), rel=0.1)


@pytest.mark.parametrize("probability", [0.001, 0.3, 0.5, 0.9, 0.97725, 0.995, 0.99999])
def test_student_quantile_is_scipys(probability: float) -> None:
    for degrees in (*range(1, 30), 100, 1001):
        expected = scipy.stats.t.ppf(probability, degrees)
        assert student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.9, 0), (math.nan, 3)])
def test_student_quantile_refuses_what_has_none(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="no Student quantile"):
        student_quantile(probability, degrees)


@pytest.mark.parametrize("values", [[0.3], [1.0, 1.2, 0.7], [-2.0, 5.0, 5.0, 9.0, 1.0]])
def test_pooled_deviation_is_the_posterior_of_a_scaled_inverse_chi_square(values: Sequence[float]) -> None:
    deviation, degrees = pooled_deviation(values, prior=0.5, degrees=4)
    # scipy's inverse gamma with shape v/2 and scale v s^2 / 2; updated by the squares around the mean, one degree less
    squares = scipy.stats.moment(values, 2) * len(values)
    posterior = scipy.stats.invgamma((4 + len(values) - 1) / 2, scale=(4 * 0.25 + squares) / 2)
    mode = degrees / (degrees + 2) * deviation**2
    assert posterior.logpdf(mode) >= max(posterior.logpdf(mode * f) for f in (0.99, 1.01))


def test_pooled_deviation_moves_from_the_prior_to_the_values() -> None:
    rng = random.Random(5)
    values = [rng.gauss(7, 3) for _ in range(4000)]
    assert pooled_deviation(values[:1], 0.5, 4) == (0.5, 4)
    assert pooled_deviation(values, 0.5, 4)[0] == pytest.approx(scipy.stats.tstd(values), rel=0.01)
    with pytest.raises(ValueError, match="no values"):
        pooled_deviation([], 0.5, 4)
