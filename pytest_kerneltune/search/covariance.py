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
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pytest_kerneltune.search.coordinates import Floats, Points

Indices: TypeAlias = npt.NDArray[np.intp]


class Placed:
    """Some points, told apart on each axis; ``columns`` are those of ``points`` that belong to each.

    A parameter has few values: what depends on two of them is found for each pair of values, not of points. All
    lengths and weights are logarithms, of shape (axes,).
    """

    def __init__(self, points: Points, columns: Sequence[Indices]) -> None:
        self._count = len(points)
        self._axes = [_Axis(points[:, each], each) for each in columns]
        most = max((len(axis.keys) for axis in self._axes), default=0)
        self._distances = np.zeros((len(columns), most, most))  # of axes with fewer places: the rest stays 0
        for distances, axis in zip(self._distances, self._axes, strict=True):
            distances[: len(axis.keys), : len(axis.keys)] = _distances(axis.places, axis.places)

    def covariance(self, lengths: Floats, weights: Floats) -> Floats:
        """Of shape (points, points), with variance 1."""
        product = np.ones((self._count, self._count))
        factors = _factor(self._distances, _by_axis(lengths), _by_axis(weights))
        for factor, axis in zip(factors, self._axes, strict=True):
            product *= factor[axis.which][:, axis.which]
        return product

    def cross(self, points: Points, lengths: Floats, weights: Floats) -> Floats:
        """The covariance between each of these and each of other ``points``."""
        product = np.ones((self._count, len(points)))
        factors = _factor(self._distances, _by_axis(lengths), _by_axis(weights))
        for factor, axis, *pair in zip(factors, self._axes, lengths, weights, strict=True):
            others = points[:, axis.columns]
            which, is_new = axis.find(others)
            between = factor[: len(axis.keys), which]
            if is_new.any():
                between[:, is_new] = _factor(_distances(axis.places, others[is_new]), *pair)
            product *= between[axis.which]
        return product

    def slopes(self, shares: Floats, lengths: Floats, weights: Floats) -> tuple[Floats, Floats]:
        """How the sum of ``shares`` times the logarithm of the covariance changes with each length and each weight.

        ``shares`` has a number for each pair of the points.
        """
        by_places = np.zeros_like(self._distances)
        for total, axis in zip(by_places, self._axes, strict=True):
            total[: len(axis.keys), : len(axis.keys)] = axis.has.T @ shares @ axis.has
        by_length, by_weight = _slopes(self._distances, _by_axis(lengths), _by_axis(weights))
        return (by_places * by_length).sum(axis=(1, 2)), (by_places * by_weight).sum(axis=(1, 2))


class _Axis:
    """The distinct ``places`` of ``points`` on an axis, by rising ``keys``; ``which`` of them each point has."""

    def __init__(self, points: Points, columns: Indices) -> None:
        self.columns = columns
        self.keys, first, self.which = np.unique(_keys(points), return_index=True, return_inverse=True)
        self.places = points[first]

    @cached_property
    def has(self) -> Floats:
        """Of shape (points, places): 1 where the point has that place."""
        return np.eye(len(self.keys))[self.which]

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
