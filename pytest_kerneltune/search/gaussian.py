"""Gaussian-process regression, its hyperparameters those of greatest posterior probability.

Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006): posterior by Cholesky factorisation (algorithm
2.1), marginal likelihood and its gradient (equations 5.8 and 5.9). The covariance has a length scale and a weight for
each axis (``covariance.py``). The hyperparameters have wide normal priors on their logarithms: with a dozen points the
likelihood alone calls axes irrelevant that are not.
"""

from __future__ import annotations

import math

import numpy as np

from pytest_kerneltune.search.coordinates import Floats, Layout, Points
from pytest_kerneltune.search.covariance import Placed

_LENGTH_DEVIATION = 0.7
"""Standard deviation of the prior on the logarithm of a length scale, axes being a unit long."""
_WEIGHT = (0.0, 0.5)
"""Mean and standard deviation of the prior on the logarithm of the weight of an axis."""
_SIGNAL = (0.0, 1.0)
"""The same for the variance of the function, targets having variance 1."""
_NOISE = (math.log(1e-2), 1.5)
"""The same for the variance of what the function does not explain."""
_BOUNDS = ((-3.0, 4.0), (-4.0, 6.0), (-4.0, 4.0), (math.log(1e-6), 0.0))
_JITTER = 1e-6
_LEAST_VARIANCE = 1e-10
_HOPELESS = 1e10  # the loss where a matrix is not positive definite


class GaussianProcess:
    """Regression of standardised targets on points; ``layout`` says what their columns mean.

    ``length`` is the logarithm of the length scale to expect: how far from a point the function is much the same.
    Hyperparameters survive from one :meth:`fit` to the next, which starts from them.
    """

    def __init__(self, layout: Layout, length: float = 0.0) -> None:
        self._layout, axes = layout, sum(len(of_value) for of_value in layout)
        counts = (axes, axes, 1, 1)
        means, deviations = zip((length, _LENGTH_DEVIATION), _WEIGHT, _SIGNAL, _NOISE, strict=True)
        self._means, self._deviations = np.repeat(means, counts), np.repeat(deviations, counts)
        self._bounds = np.repeat(_BOUNDS, counts, axis=0)
        self._theta = self._means.copy()

    def fit(self, points: Points, targets: Floats, iterations: int) -> None:
        """Improve the hyperparameters by at most ``iterations`` steps of L-BFGS, and learn the data."""
        from scipy.optimize import minimize

        placed, options = Placed(points, self._layout), {"maxiter": iterations}
        data = (placed, targets)
        found = minimize(self._loss, self._theta, data, "L-BFGS-B", jac=True, bounds=self._bounds, options=options)
        self._theta = found.x
        self._learn(placed, targets)

    def learn(self, points: Points, targets: Floats) -> None:
        """Replace the data, the hyperparameters being as they are."""
        self._learn(Placed(points, self._layout), targets)

    def _learn(self, placed: Placed, targets: Floats) -> None:
        self._placed = placed
        self._factor = _cholesky(_noisy(self._theta, self._function(self._theta, self._placed)))
        self._weights = _solve(self._factor, targets)

    def predict(self, points: Points) -> tuple[Floats, Floats]:
        """Mean and variance of the function at each of ``points``."""
        from scipy.linalg import solve_triangular

        variance = math.exp(self._theta[-2])
        cross = variance * self._placed.cross(points, *self._scales(self._theta))
        explained = solve_triangular(self._factor, cross, lower=True, check_finite=False)
        return self._weights @ cross, np.maximum(variance - (explained**2).sum(axis=0), _LEAST_VARIANCE)

    def _scales(self, theta: Floats) -> Floats:
        """Lengths and weights of the axes."""
        return theta[:-2].reshape(2, -1)

    def _function(self, theta: Floats, placed: Placed) -> Floats:
        """The covariance of the function, without noise."""
        return math.exp(theta[-2]) * placed.covariance(*self._scales(theta))

    def _loss(self, theta: Floats, placed: Placed, targets: Floats) -> tuple[float, Floats]:
        """The negative log posterior density of ``theta`` (up to a constant) and its gradient."""
        function = self._function(theta, placed)
        try:
            factor = _cholesky(_noisy(theta, function))
        except np.linalg.LinAlgError:
            return _HOPELESS, np.zeros_like(theta)
        weights = _solve(factor, targets)
        distances = (theta - self._means) / self._deviations
        loss = 0.5 * targets @ weights + np.log(np.diag(factor)).sum() + 0.5 * distances @ distances
        sensitivity = 0.5 * (_solve(factor, np.eye(len(targets))) - np.outer(weights, weights))
        shares = sensitivity * function
        by_axis = placed.slopes(shares, *self._scales(theta))
        noise = np.trace(sensitivity) * math.exp(theta[-1])
        return float(loss), np.concatenate([*by_axis, [shares.sum(), noise]]) + distances / self._deviations


def _noisy(theta: Floats, function: Floats) -> Floats:
    """The covariance of the targets."""
    return np.asarray(function + (math.exp(theta[-1]) + _JITTER) * np.eye(len(function)))


def _cholesky(matrix: Floats) -> Floats:
    return np.asarray(np.linalg.cholesky(matrix), dtype=np.float64)


def _solve(factor: Floats, right: Floats) -> Floats:
    from scipy.linalg import cho_solve

    return np.asarray(cho_solve((factor, True), right, check_finite=False))


def log_expected_improvement(mean: Floats, variance: Floats, best: float) -> Floats:
    """Logarithm of by how much the function is expected to be below ``best`` (Jones et al., 1998).

    The logarithm tells candidates apart whose improvement is too improbable for a floating-point number (Ament et al.,
    "Unexpected Improvements to Expected Improvement for Bayesian Optimization", 2023).
    """
    from scipy.special import log_ndtr, ndtr

    deviation = np.sqrt(variance)
    z = (best - mean) / deviation
    near = np.maximum(z, -5.0)
    density = np.exp(-0.5 * near**2) / math.sqrt(2 * math.pi)
    # Far below, z * ndtr(z) + density cancels; it is ndtr(z) times the reciprocal of a continued fraction.
    x = -np.minimum(z, -5.0)
    far = log_ndtr(-x) - np.log(x + 2 / (x + 3 / (x + 4 / (x + 5 / x))))
    return np.asarray(np.log(deviation) + np.where(z > -5.0, np.log(near * ndtr(near) + density), far))
