"""Gaussian-process regression and expected improvement, against scikit-learn, quadrature and finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pytest_kerneltune.search.coordinates import Floats
from pytest_kerneltune.search.covariance import Placed
from pytest_kerneltune.search.gaussian import GaussianProcess, log_expected_improvement

LAYOUT = [[np.array([0]), np.array([0])], [np.array([1, 2]), np.array([3])]]  # two axes are on the same column
COLUMNS = 4
LENGTHS, WEIGHTS, SIGNAL, NOISE = (0.3, 0.9, 1.5, 0.8), (2.0, 0.7, 0.5, 1.0), 1.7, 0.05


def some_points(count: int, columns: int = COLUMNS, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random((count, columns))


def waves(points: Floats) -> Floats:
    """A function of the first column that spans about two waves, plus a slope along the second."""
    return np.asarray(np.sin(9 * points[:, 0]) + 0.3 * points[:, 1])


def fixed_process() -> GaussianProcess:
    """A model whose hyperparameters are LENGTHS, WEIGHTS, SIGNAL and NOISE."""
    model = GaussianProcess(LAYOUT)
    model._theta = np.log([*LENGTHS, *WEIGHTS, SIGNAL, NOISE])
    return model


def reference(lengths: Floats, weights: Floats, signal: float, noise: float) -> Any:
    """Scikit-learn's regression with the same covariance, its hyperparameters fixed."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    kernel: Any = ConstantKernel(signal, "fixed")
    axes = [columns for value in LAYOUT for columns in value]
    for columns, length, weight in zip(axes, lengths, weights, strict=True):
        is_own = np.isin(np.arange(COLUMNS), columns)
        scales = np.where(is_own, length, 1e9)  # what is no column of this axis counts for nothing
        kernel *= ConstantKernel(1 / (1 + weight)) + ConstantKernel(weight / (1 + weight)) * Matern(scales, nu=1.5)
    return GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)


@pytest.mark.parametrize("count", [1, 2, 40])
def test_posterior_is_that_of_scikit_learn(count: int) -> None:
    points, elsewhere = some_points(count), some_points(25, seed=1)
    targets = waves(points)
    model = fixed_process()
    model.learn(points, targets)
    mean, variance = model.predict(elsewhere)
    expected, deviation = (
        reference(np.array(LENGTHS), np.array(WEIGHTS), SIGNAL, NOISE).fit(points, targets).predict(elsewhere, True)
    )
    np.testing.assert_allclose(mean, expected, atol=1e-3)
    np.testing.assert_allclose(variance, deviation**2, atol=1e-3)


def test_loss_differs_by_the_log_marginal_likelihood_between_equally_probable_hyperparameters() -> None:
    points = some_points(30)
    targets = waves(points)
    model = GaussianProcess(LAYOUT)
    placed = Placed(points, model._layout)
    centre = model._theta.copy()
    step = np.array([-0.9, -0.6, 0.4, 0.2, 0.8, -0.3, -0.5, 0.1, 0.5, -1.1])  # the prior is symmetrical

    def likelihood(theta: Floats) -> float:
        natural = np.exp(theta)
        fitted = reference(natural[:4], natural[4:8], natural[8], natural[9]).fit(points, targets)
        return float(fitted.log_marginal_likelihood_value_)

    losses = [model._loss(theta, placed, targets)[0] for theta in (centre + step, centre - step)]
    assert losses[0] - losses[1] == pytest.approx(likelihood(centre - step) - likelihood(centre + step), rel=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_the_loss(seed: int) -> None:
    from scipy.optimize import approx_fprime

    points = some_points(20, seed=seed)
    targets = waves(points)
    model = GaussianProcess(LAYOUT)
    theta = model._theta + np.random.default_rng(seed).normal(0, 0.7, len(model._theta))
    placed = Placed(points, model._layout)
    _, gradient = model._loss(theta, placed, targets)
    numeric = approx_fprime(theta, lambda at: model._loss(at, placed, targets)[0], 1e-6)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-3)


def test_fit_lowers_the_loss_and_finds_the_irrelevant_axes() -> None:
    points = some_points(40)
    targets = np.sin(9 * points[:, 0])
    model = GaussianProcess(LAYOUT)
    placed = Placed(points, model._layout)
    before = model._loss(model._theta, placed, targets)[0]
    model.fit(points, targets, 50)
    assert model._loss(model._theta, placed, targets)[0] < before - 5
    centre = np.full((1, COLUMNS), 0.5)
    change = [abs(model.predict(centre + 0.2 * row)[0] - model.predict(centre)[0])[0] for row in np.eye(COLUMNS)]
    assert change[0] > 10 * max(change[1:])


def test_fit_predicts_better_than_the_hyperparameters_it_starts_from() -> None:
    points, elsewhere = some_points(40), some_points(200, seed=1)
    fitted, fresh = GaussianProcess(LAYOUT), GaussianProcess(LAYOUT)
    fitted.fit(points, waves(points), 50)
    fresh.learn(points, waves(points))
    errors = [np.abs(model.predict(elsewhere)[0] - waves(elsewhere)).mean() for model in (fitted, fresh)]
    assert errors[0] < 0.1
    assert errors[0] < errors[1] / 2


def test_hyperparameters_outlive_the_data_that_they_were_fitted_to() -> None:
    few, elsewhere = some_points(8, seed=2), some_points(200, seed=1)
    fitted, fresh = GaussianProcess(LAYOUT), GaussianProcess(LAYOUT)
    fitted.fit(some_points(40), waves(some_points(40)), 50)
    errors = []
    for model in (fitted, fresh):
        model.learn(few, waves(few))
        errors.append(np.abs(model.predict(elsewhere)[0] - waves(elsewhere)).mean())
    assert errors[0] < 0.8 * errors[1]


def test_is_sure_where_it_has_data_and_unsure_far_away() -> None:
    model = fixed_process()
    points = some_points(10)
    model.learn(points, waves(points))
    _, near = model.predict(points)
    mean, far = model.predict(points + 100)
    assert near.max() < NOISE
    np.testing.assert_allclose(far, SIGNAL, rtol=0.05)  # the little that is the same everywhere is known from anywhere
    np.testing.assert_allclose(mean, mean[0])
    assert abs(mean[0]) < np.abs(waves(points)).mean() / 2


def test_what_was_learned_of_each_axis_alone_is_believed_of_all_together() -> None:
    """Points differ from the origin on one axis only; the farthest corner is a whole diagonal away from all."""
    steps = np.linspace(0, 1, 6)
    points = np.concatenate([np.outer(steps, np.isin(np.arange(COLUMNS), axis)) for axis in (0, (1, 2), 3)])
    targets = np.asarray(points @ [1.0, -0.5, -0.5, 2.0])
    model = GaussianProcess(LAYOUT)
    model.fit(points, targets, 50)
    mean, _ = model.predict(np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(mean, [3.0, -1.0, 2.0], atol=0.6)


def test_places_in_many_columns_are_told_apart() -> None:
    """Two rows of ten columns that sums with the roots of 2 to 11 for weights would mix up."""
    points = np.zeros((2, 10))
    points[0, 0], points[1, 6] = 2.0, 1.0
    model = GaussianProcess([[np.arange(10)]])
    model.learn(points, np.array([1.0, -1.0]))
    mean, _ = model.predict(points)
    assert mean[0] > 0.5
    assert mean[1] < -0.5


def test_what_is_observed_twice_at_a_point_is_averaged() -> None:
    model = fixed_process()
    model.learn(np.full((40, COLUMNS), 0.5), np.tile([0.2, 0.6], 20))
    mean, variance = model.predict(np.full((1, COLUMNS), 0.5))
    assert mean[0] == pytest.approx(0.4, abs=0.01)
    assert variance[0] < NOISE / 10


@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-6, 1e-3])
def test_near_duplicates_that_disagree_do_no_harm(distance: float) -> None:
    points = np.full((60, COLUMNS), 0.5) + distance * some_points(60)
    targets = np.tile([1.0, -1.0], 30)
    model = GaussianProcess(LAYOUT)
    model.fit(points, targets, 50)
    mean, variance = model.predict(np.concatenate([points, some_points(10)]))
    assert np.isfinite(mean).all()
    assert np.abs(mean).max() < 3
    assert (variance > 0).all()
    assert np.isfinite(variance).all()


def test_near_duplicates_do_no_harm_where_there_is_no_noise() -> None:
    points = np.repeat(some_points(60), 3, axis=0) + 1e-9 * some_points(180)
    model = GaussianProcess(LAYOUT)
    model.fit(points, np.repeat(waves(some_points(60)), 3), 50)
    mean, _ = model.predict(some_points(60))
    np.testing.assert_allclose(mean, waves(some_points(60)), atol=0.05)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_constant_targets(count: int) -> None:
    model = GaussianProcess(LAYOUT)
    model.fit(some_points(count), np.zeros(count), 50)
    mean, variance = model.predict(some_points(10, seed=1))
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    assert (variance > 0).all()


def test_one_point() -> None:
    model = GaussianProcess(LAYOUT)
    point = some_points(1)
    model.fit(point, np.array([1.0]), 50)
    mean, variance = model.predict(np.concatenate([point, point + 10]))
    assert 0.3 < mean[0] <= 1.0
    assert abs(mean[1]) < mean[0] / 4
    assert variance[0] < variance[1]


def test_space_without_columns() -> None:
    model = GaussianProcess([])
    model.fit(np.zeros((1, 0)), np.array([0.0]), 50)
    mean, variance = model.predict(np.zeros((2, 0)))
    assert np.isfinite(mean).all()
    assert (variance > 0).all()


def test_data_are_not_changed() -> None:
    points, targets = some_points(10), waves(some_points(10))
    model = GaussianProcess(LAYOUT)
    model.fit(points, targets, 20)
    model.predict(points)
    np.testing.assert_array_equal(points, some_points(10))
    np.testing.assert_array_equal(targets, waves(some_points(10)))


def improvement(below: Floats, variance: float = 1.0) -> Floats:
    """Log expected improvement where the predicted mean is ``below`` deviations better than the best so far."""
    return log_expected_improvement(-below * math.sqrt(variance), np.full(len(below), variance), 0.0)


def test_expected_improvement_is_its_closed_form() -> None:
    from scipy.stats import norm

    mean, variance = np.array([0.5, 1.0, 2.0, -3.0]), np.array([0.01, 4.0, 1.0, 0.25])
    z = (1.2 - mean) / np.sqrt(variance)
    expected = (1.2 - mean) * norm.cdf(z) + np.sqrt(variance) * norm.pdf(z)
    np.testing.assert_allclose(log_expected_improvement(mean, variance, 1.2), np.log(expected), rtol=1e-9)


@pytest.mark.parametrize("z", [-1.0, -3.0, -4.9, -5.1, -8.0, -20.0, -40.0, -1000.0])
def test_expected_improvement_in_the_tail_is_its_integral(z: float) -> None:
    """The integral of t * density(t - z) over t > 0, with the density at z taken out and t in units of 1 / -z."""
    from scipy.integrate import quad

    integral, _ = quad(lambda u: u * math.exp(-u - 0.5 * (u / z) ** 2), 0, math.inf)
    expected = -0.5 * z**2 - 0.5 * math.log(2 * math.pi) - 2 * math.log(-z) + math.log(integral)
    assert improvement(np.array([z]))[0] == pytest.approx(expected, abs=1e-4)


def test_log_expected_improvement_is_finite_and_rises_with_the_prediction() -> None:
    near, far = np.linspace(-40, 40, 1601), -np.logspace(7, 1.7, 200)
    for z in (near, far):
        values = improvement(z)
        assert np.isfinite(values).all()
        assert (np.diff(values) > 0).all()
    slopes = np.diff(improvement(near)) / np.diff(near)
    assert np.abs(np.diff(slopes)).max() < 2.5  # nowhere a jump


@pytest.mark.parametrize("variance", [1e-10, 1e-4, 25.0])
def test_expected_improvement_scales_with_the_deviation(variance: float) -> None:
    z = np.linspace(-9, 9, 19)
    np.testing.assert_allclose(improvement(z, variance), improvement(z) + 0.5 * math.log(variance), atol=1e-6)


def test_where_equally_good_is_predicted_doubt_is_worth_more() -> None:
    values = log_expected_improvement(np.zeros(3), np.array([0.01, 0.1, 1.0]), 0.0)
    assert (np.diff(values) > 0).all()
