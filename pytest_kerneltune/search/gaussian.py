"""Gaussian-process regression, with a length scale for each axis and hyperparameters of greatest posterior probability.

Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006): posterior by Cholesky factorisation (algorithm
2.1), squared-exponential covariance with automatic relevance determination (section 5.1), marginal likelihood and its
gradient (equations 5.8 and 5.9). The hyperparameters have wide normal priors on their logarithms: with a dozen points
the likelihood alone calls axes irrelevant that are not.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pytest_kerneltune.search.coordinates import Points

Floats: TypeAlias = npt.NDArray[np.float64]

_LENGTH = (0.0, 1.0)
"""Mean and standard deviation of the prior on the logarithm of a length scale, axes being a unit long."""
_SIGNAL = (0.0, 1.0)
"""The same for the variance of the function, targets having variance 1."""
_NOISE = (math.log(1e-2), 1.5)
"""The same for the variance of what the function does not explain."""
_BOUNDS = ((-3.0, 4.0), (-4.0, 4.0), (math.log(1e-6), 0.0))
_JITTER = 1e-6
_LEAST_VARIANCE = 1e-10
_HOPELESS = 1e10  # the loss where a matrix is not positive definite


class GaussianProcess:
    """Regression of standardised targets on points whose columns belong to ``groups``, ``axes`` in number.

    Hyperparameters survive from one :meth:`fit` to the next, which starts from them.
    """

    def __init__(self, groups: npt.NDArray[np.intp], axes: int) -> None:
        self._groups, self._axes = groups, axes
        self._means = np.array([_LENGTH[0]] * axes + [_SIGNAL[0], _NOISE[0]])
        self._deviations = np.array([_LENGTH[1]] * axes + [_SIGNAL[1], _NOISE[1]])
        self._bounds = [_BOUNDS[0]] * axes + list(_BOUNDS[1:])
        self._theta = self._means.copy()

    def fit(self, points: Points, targets: Floats, iterations: int) -> None:
        """Improve the hyperparameters by at most ``iterations`` steps of L-BFGS, and learn the data."""
        from scipy.optimize import minimize

        options = {"maxiter": iterations}
        found = minimize(
            self._loss, self._theta, (points, targets), "L-BFGS-B", jac=True, bounds=self._bounds, options=options
        )
        self._theta = found.x
        self.learn(points, targets)

    def learn(self, points: Points, targets: Floats) -> None:
        """Replace the data, the hyperparameters being as they are."""
        covariance, _ = self._covariances(self._theta, points)
        self._points, self._scaled = points, points * self._scales(self._theta)
        self._factor = _cholesky(covariance)
        self._weights = _solve(self._factor, targets)

    def predict(self, points: Points) -> tuple[Floats, Floats]:
        """Mean and variance of the function at each of ``points``."""
        from scipy.linalg import solve_triangular

        variance = math.exp(self._theta[self._axes])
        cross = variance * np.exp(-0.5 * _squares(points * self._scales(self._theta), self._scaled))
        explained = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        return cross @ self._weights, np.maximum(variance - (explained**2).sum(axis=0), _LEAST_VARIANCE)

    def _scales(self, theta: Floats) -> Floats:
        """What each column is multiplied by before distances are taken."""
        return np.asarray(np.exp(-theta[: self._axes])[self._groups])

    def _covariances(self, theta: Floats, points: Points) -> tuple[Floats, Floats]:
        """The covariance of the targets, and of the function without noise."""
        scaled = points * self._scales(theta)
        function = math.exp(theta[self._axes]) * np.exp(-0.5 * _squares(scaled, scaled))
        return function + (math.exp(theta[-1]) + _JITTER) * np.eye(len(points)), function

    def _loss(self, theta: Floats, points: Points, targets: Floats) -> tuple[float, Floats]:
        """The negative log posterior density of ``theta`` (up to a constant) and its gradient."""
        covariance, function = self._covariances(theta, points)
        try:
            factor = _cholesky(covariance)
        except np.linalg.LinAlgError:
            return _HOPELESS, np.zeros_like(theta)
        weights = _solve(factor, targets)
        distances = (theta - self._means) / self._deviations
        loss = 0.5 * targets @ weights + np.log(np.diag(factor)).sum() + 0.5 * distances @ distances
        sensitivity = 0.5 * (_solve(factor, np.eye(len(points))) - np.outer(weights, weights))
        shares = sensitivity * function
        by_column = 2 * (shares.sum(axis=1) @ points**2 - (points * (shares @ points)).sum(axis=0))
        by_axis = np.bincount(self._groups, by_column * self._scales(theta) ** 2, self._axes)
        noise = np.trace(sensitivity) * math.exp(theta[-1])
        return float(loss), np.concatenate([by_axis, [shares.sum(), noise]]) + distances / self._deviations


def _squares(left: Points, right: Points) -> Floats:
    """Squared distances, of shape (left, right)."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None] - 2 * left @ right.T
    return np.asarray(np.maximum(squares, 0.0))


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
