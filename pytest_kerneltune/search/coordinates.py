"""Configs as points, for models in which near points are alike.

Each parameter spans a unit of length, whatever its values:

- Numbers are placed by their rank: who lists values makes their steps matter about equally. Whole numbers that are not
  all powers of two get a second coordinate, how often 2 divides them: hardware comes in powers of two, so that 96
  threads have more in common with 32 and 64 than with 90.
- Values without an order are all equally far from each other.
- The elements of a list count on their own, a permutation as a whole.
- Sizes of a tile count a second time, by what each thread gets (``threadwork.py``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pytest_kerneltune.parameter import ListOf, Parameter
from pytest_kerneltune.search.threadwork import work_axes
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

Points: TypeAlias = npt.NDArray[np.float64]
"""One config a row."""
Floats: TypeAlias = npt.NDArray[np.float64]

_Place: TypeAlias = Callable[[Any], list[float]]
_MOST_HALVINGS = 6  # 64 divides what 128 divides, as far as hardware is concerned
_PROBES = 64  # values drawn to learn the extent of a kind that cannot list its values


class Coordinates:
    """Places the configs of a space; ``groups`` says of each column which of ``count`` axes it belongs to.

    An axis is what a model may find more or less important: a parameter, an element of a list, divisibility by 2, the
    work of a thread.
    """

    def __init__(self, space: ConfigSpace) -> None:
        self._space = space
        axes = {name: _axes(p) for name, p in space.parameters.items()}
        self._columns = {name: _Columns(pairs) for name, pairs in axes.items()}
        self._work = work_axes(space)
        widths = [width for pairs in axes.values() for _, width in pairs]
        widths += [1] * len(self._work)
        self.count = len(widths)
        self.groups = np.repeat(np.arange(self.count), widths)

    def points(self, configs: Sequence[Config]) -> Points:
        """The configs as an array of shape (configs, columns)."""
        plain = [columns.places([config[name] for config in configs]) for name, columns in self._columns.items()]
        work = np.array([[place(config) for place in self._work] for config in configs], float)
        return np.concatenate([*plain, work.reshape(len(configs), len(self._work))], axis=1)


class _Columns:
    """The columns of one parameter; where a value is, is worked out once."""

    def __init__(self, axes: Sequence[tuple[_Place, int]]) -> None:
        self._axes = axes
        self._width = sum(width for _, width in axes)
        self._known: dict[str, list[float]] = {}

    def places(self, values: Sequence[Any]) -> Points:
        """Of shape (values, columns)."""
        tokens = [repr(value) for value in values]  # tells True from 1, which a dict would not
        distinct = dict(zip(tokens, values, strict=True))
        self._known.update((t, self._place(v)) for t, v in distinct.items() if t not in self._known)
        rows = np.array([self._known[t] for t in distinct], float).reshape(len(distinct), self._width)
        ranks = {t: rank for rank, t in enumerate(distinct)}
        return np.asarray(rows[np.array([ranks[t] for t in tokens], np.intp)])

    def _place(self, value: Any) -> list[float]:
        return [x for place, _ in self._axes for x in place(value)]


def _axes(parameter: Parameter) -> list[tuple[_Place, int]]:
    """The axes of a parameter: where a value is on it, and in how many columns that is said."""
    if isinstance(parameter, ListOf):
        inner = _axes(parameter.inner)
        return [(_of_element(i, place), width) for i in range(parameter.length) for place, width in inner]
    values = parameter.values()
    if values is not None and (isinstance(values, range) or all(type(v) in (int, float) for v in values)):
        return _ordered(values)
    return [_spread(parameter, values)]


def _of_element(index: int, place: _Place) -> _Place:
    return lambda value: place(value[index])


def _ordered(values: Sequence[Any]) -> list[tuple[_Place, int]]:
    if isinstance(values, range):
        low, length = values[0], abs(values[-1] - values[0]) or 1  # len() is limited to a machine word
        axes: list[tuple[_Place, int]] = [(lambda value: [(value - low) / length], 1)]
        levels = [float(n) for n in range(_MOST_HALVINGS + 1)] if values[2:] else []
    else:
        last = max(1, len(values) - 1)
        ranks = {value: rank / last for rank, value in enumerate(sorted(values))}
        axes = [(lambda value: [ranks[value]], 1)]
        is_plain = all(type(v) is int and v & (v - 1) == 0 for v in values) or any(type(v) is float for v in values)
        levels = [] if is_plain or len(values) <= 2 else sorted({_halvings(v) for v in values})
    if len(levels) > 1:
        least, extent = levels[0], levels[-1] - levels[0]
        axes.append((lambda value: [(_halvings(value) - least) / extent], 1))
    return axes


def _halvings(value: int) -> float:
    """How often 2 divides ``value``."""
    return float(min(_MOST_HALVINGS, (value & -value).bit_length() - 1) if value else _MOST_HALVINGS)


def _spread(parameter: Parameter, values: Sequence[Any] | None) -> tuple[_Place, int]:
    """One axis of what :meth:`Parameter.encode` says, scaled so that values are on average a unit apart."""
    rng = random.Random(0)
    probes = [parameter.sample(rng) for _ in range(_PROBES)] if values is None or len(values) > _PROBES else values
    rows = np.array([parameter.encode(value) for value in probes], float)
    distances = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(axis=2))
    apart = distances[distances > 0]
    scale = 1.0 / float(apart.mean()) if apart.size and math.isfinite(apart.mean()) else 1.0
    return (lambda value: [x * scale for x in parameter.encode(value)]), parameter.width
