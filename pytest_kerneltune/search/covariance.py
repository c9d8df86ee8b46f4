"""How alike two configs are taken to be: the covariance of their latencies, an ANOVA kernel.

It is a product with a factor (1 + w k) / (1 + w) for each axis, where k falls from 1 to 0 with the distance on the axis
and w is the axis' weight. Multiplied out, that is a sum over all sets of axes: what each does on its own, what each
pair does, and so on. So what was learned of an axis is believed at other values of the others too, and a dozen configs
say something about all. With k alone for a factor (w without limit), a config says nothing of one that is far on any
axis. (Durrande et al., "ANOVA kernels and RKHS of zero mean functions for model-based sensitivity analysis", 2013;
Duvenaud et al., "Additive Gaussian Processes", 2011.)

k is Matérn's correlation with parameter 3/2 (Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006,
equation 4.17): functions with one derivative. The squared exponential's have all, which is smoother than latencies are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from pytest_kerneltune.search.coordinates import Floats, Indices, Layout, Points


class Placed:
    """Some points, told apart by each value they consist of; ``layout`` says what the columns of ``points`` mean.

    A parameter has few values: what depends on two of them is found for each pair of values, not of points. All
    lengths and weights are logarithms, of shape (axes,).
    """

    def __init__(self, points: Points, layout: Layout) -> None:
        self._count = len(points)
        *firsts, count = accumulate(map(len, layout), initial=0)
        self._values = [_Value(points, axes, first) for axes, first in zip(layout, firsts, strict=True)]
        most = max((len(value.keys) for value in self._values), default=0)
        self._distances = np.zeros((count, most, most))  # of values with fewer places: the rest stays 0
        for value in self._values:
            size = len(value.keys)
            self._distances[value.axes, :size, :size] = value.distances(value.places)

    def covariance(self, lengths: Floats, weights: Floats) -> Floats:
        """Of shape (points, points), with variance 1."""
        product = np.ones((self._count, self._count))
        factors = _factor(self._distances, _by_axis(lengths), _by_axis(weights))
        for value in self._values:
            product *= factors[value.axes].prod(axis=0)[value.which][:, value.which]
        return product

    def cross(self, points: Points, lengths: Floats, weights: Floats) -> Floats:
        """The covariance between each of these and each of other ``points``."""
        product = np.ones((self._count, len(points)))
        factors = _factor(self._distances, _by_axis(lengths), _by_axis(weights))
        for value in self._values:
            others = points[:, value.columns]
            which, is_new = value.find(others)
            between = factors[value.axes, : len(value.keys)].prod(axis=0)[:, which]
            if is_new.any():
                hyperparameters = _by_axis(lengths[value.axes]), _by_axis(weights[value.axes])
                between[:, is_new] = _factor(value.distances(others[is_new]), *hyperparameters).prod(axis=0)
            product *= between[value.which]
        return product

    def slopes(self, shares: Floats, lengths: Floats, weights: Floats) -> tuple[Floats, Floats]:
        """How the sum of ``shares`` times the logarithm of the covariance changes with each length and each weight.

        ``shares`` has a number for each pair of the points.
        """
        by_places = np.zeros_like(self._distances)
        for value in self._values:
            size = len(value.keys)
            by_places[value.axes, :size, :size] = value.has.T @ shares @ value.has
        by_length, by_weight = _slopes(self._distances, _by_axis(lengths), _by_axis(weights))
        return (by_places * by_length).sum(axis=(1, 2)), (by_places * by_weight).sum(axis=(1, 2))


class _Value:
    """The distinct ``places`` of ``points`` in the columns of one value, by rising ``keys``.

    ``which`` of them each point has; ``axes`` are the value's among all, the first of them ``first``.
    """

    def __init__(self, points: Points, axes: Sequence[Indices], first: int) -> None:
        self.axes = slice(first, first + len(axes))
        self.columns = np.unique(np.concatenate(axes))
        self._of_axes = [np.searchsorted(self.columns, each) for each in axes]
        own = points[:, self.columns]
        self.keys, indices, self.which = np.unique(_keys(own), return_index=True, return_inverse=True)
        self.places = own[indices]

    @cached_property
    def has(self) -> Floats:
        """Of shape (points, places): 1 where the point has that place."""
        return np.eye(len(self.keys))[self.which]

    def distances(self, others: Points) -> Floats:
        """From each place to each of ``others``, of shape (axes, places, others)."""
        return np.stack([_distances(self.places[:, each], others[:, each]) for each in self._of_axes])

    def find(self, points: Points) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """Which place each of other ``points`` has, and whether that is a new one, and the first answer void."""
        keys = _keys(points)
        which = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return which, self.keys[which] != keys


def _keys(points: Points) -> Floats:
    """A number for each row, equal for equal rows only: numbers are found much more quickly than rows.

    It is a sum with weights of which no combination by rational numbers is 0 (theorem of Lindemann and Weierstrass).
    """
    keys = np.zeros(len(points))
    for column, values in enumerate(points.T, start=1):
        keys += math.sin(column) * values
    return keys


def _by_axis(values: Floats) -> Floats:
    """With dimensions for pairs of places."""
    return values[:, None, None]


def _factor(distances: Floats, length: Floats, weight: Floats) -> Floats:
    importance = np.exp(weight)
    return np.asarray((1 + importance * _correlation(_scaled(distances, length))) / (1 + importance))


def _slopes(distances: Floats, length: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """The derivatives of the logarithm of :func:`_factor` with respect to ``length`` and ``weight``."""
    importance, scaled = np.exp(weight), _scaled(distances, length)
    part = importance * _correlation(scaled)
    falling = importance * scaled**2 * np.exp(-scaled)
    return falling / (1 + part), part / (1 + part) - importance / (1 + importance)


def _scaled(distances: Floats, length: Floats) -> Floats:
    return np.asarray(math.sqrt(3) * np.exp(-length) * distances)


def _correlation(scaled: Floats) -> Floats:
    """Matérn's with parameter 3/2."""
    return np.asarray((1 + scaled) * np.exp(-scaled))


def _distances(left: Points, right: Points) -> Floats:
    """Of shape (left, right)."""
    if left.shape[1] == 1:
        return np.asarray(np.abs(left - right.T))
    return np.asarray(np.sqrt(((left[:, None] - right[None]) ** 2).sum(axis=2)))
