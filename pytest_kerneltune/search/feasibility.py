"""How probably a config works: learned from what failed, and from how much of the device's limits configs ask for.

Whether a config works is a step, of which a model learns only that it is somewhere between two configs. What its
compiled code asks for (``Trial.demand``) is a smooth function of the parameters, mostly a product: from a few trials,
none of which need have failed, a model of its logarithm says where it exceeds the limit. Failures that the demand
explains are left to that model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pytest_kerneltune.search.coordinates import Coordinates, Floats, Points
from pytest_kerneltune.search.gaussian import GaussianProcess
from pytest_kerneltune.trial import Trial

_ITERATIONS = 30
_DOUBT = 0.1  # variance of the outcome of a config whose chance is known
_LEAST_CHANCE = 1e-6
_FEWEST = 5  # demands: less says nothing
_DEMAND_LENGTH = 1.0  # logarithm: what configs ask for is smoother than how fast they are
_LEAST_SPREAD = 1e-9  # of logarithms: what is less is rounding
_OVERCONFIDENCE = 2.0  # a variance that takes the hyperparameters for certain is too small; by how much is a guess


class Feasibility:
    """Two models, of what works and of demands, over the points of ``coordinates``."""

    def __init__(self, coordinates: Coordinates) -> None:
        self._outcome = GaussianProcess(coordinates.layout)
        self._demand = GaussianProcess(coordinates.layout, _DEMAND_LENGTH)
        self._tendency: float | None = None
        self._limit: float | None = None

    def learn(self, points: Points, trials: Sequence[Trial], refit: bool) -> None:
        """Take in ``trials``, made at ``points``; with ``refit`` the hyperparameters are improved, too."""
        demands = np.array([t.demand for t in trials])
        works = np.array([t.ok for t in trials])
        self._learn_demands(points, demands, refit)
        open_ = demands <= 1 if self._limit is not None else np.ones(len(trials), dtype=bool)
        self._learn_outcomes(points[open_], works[open_], refit)

    def _learn_demands(self, points: Points, demands: Floats, refit: bool) -> None:
        self._limit = None
        is_told = demands > 0
        if is_told.sum() < _FEWEST:
            return
        logs = np.log(demands[is_told])
        middle, spread = float(logs.mean()), float(logs.std())
        if spread > _LEAST_SPREAD:
            self._limit = -middle / spread
            teach(self._demand, points[is_told], (logs - middle) / spread, refit)

    def _learn_outcomes(self, points: Points, works: npt.NDArray[np.bool_], refit: bool) -> None:
        self._tendency = None
        if not works.all():
            self._tendency = float(2 * works.mean() - 1)  # mean of the outcomes 1 (works) and -1 (fails)
            teach(self._outcome, points, np.where(works, 1.0, -1.0) - self._tendency, refit)

    def discount(self, points: Points) -> Floats:
        """What the logarithm of a config's worth loses by the risk that it fails: nothing where that is below half."""
        from scipy.special import ndtr

        loss = np.zeros(len(points))
        if self._tendency is not None:
            mean, variance = self._outcome.predict(points)
            loss += _loss(ndtr((mean + self._tendency) / np.sqrt(variance + _DOUBT)))
        if self._limit is not None:
            mean, variance = self._demand.predict(points)
            loss += _loss(ndtr((self._limit - mean) / np.sqrt(_OVERCONFIDENCE * variance)))
        return loss


def _loss(chance: Floats) -> Floats:
    return np.asarray(2 * np.log(np.clip(2 * chance, _LEAST_CHANCE, 1.0)))


def teach(model: GaussianProcess, points: Points, targets: Floats, refit: bool) -> None:
    """Replace the data of ``model``; with ``refit`` improve its hyperparameters, too."""
    if refit:
        model.fit(points, targets, _ITERATIONS)
    else:
        model.learn(points, targets)
