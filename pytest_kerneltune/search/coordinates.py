"""Configs as points, for models in which near points are alike.

Each parameter spans a unit of length, whatever its values:

- Positive numbers are placed by their logarithm, since doubling a size matters about equally wherever it starts; others
  by their rank, since who lists values makes their steps matter about equally. Whole numbers that are not all powers of
  two get a second coordinate, how often 2 divides them: hardware comes in powers of two, so that 96 threads have more
  in common with 32 and 64 than with 90.
- A number of more than two values has two axes in one place: it may matter in the small and in the large, and in all it
  matters more than a switch does.
- Values without an order are all equally far from each other.
- The elements of a list count on their own, a permutation as a whole.
- Sizes of a tile count a second time, by what each thread gets (``threadwork.py``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
Indices: TypeAlias = npt.NDArray[np.intp]
Layout: TypeAlias = Sequence[Sequence[Indices]]
"""What columns mean: for each value that a config consists of, its axes, and for each axis, its columns."""

_MOST_HALVINGS = 6  # 64 divides what 128 divides, as far as hardware is concerned
_PROBES = 64  # values drawn to learn the extent of a kind that cannot list its values
_SCALES = 2  # axes of a number in one place


@dataclass(frozen=True)
class _Axes:
    """``count`` axes that share ``width`` columns; ``place`` says where a value is on them."""

    place: Callable[[Any], list[float]]
    width: int = 1
    count: int = 1


class Coordinates:
    """Places the configs of a space in ``width`` columns; ``layout`` says what they mean.

    An axis is what a model may find more or less important: the size of a number, its divisibility by 2, the work of a
    thread. A value is that of a parameter, or of an element where it is a list.
    """

    def __init__(self, space: ConfigSpace) -> None:
        self._space = space
        values = {name: _values(parameter) for name, parameter in space.parameters.items()}
        self._columns = {name: _Columns([axes for value in values[name] for axes in value]) for name in values}
        self._work = work_axes(space)
        shapes = [[(axes.width, axes.count) for axes in value] for name in values for value in values[name]]
        self.layout = _layout([*shapes, *([(1, 1)] for _ in self._work)])
        self.width = sum(width for value in shapes for width, _ in value) + len(self._work)

    def points(self, configs: Sequence[Config]) -> Points:
        """The configs as an array of shape (configs, columns)."""
        plain = [columns.places([config[name] for config in configs]) for name, columns in self._columns.items()]
        work = np.array([[place(config) for place in self._work] for config in configs], float)
        return np.concatenate([*plain, work.reshape(len(configs), len(self._work))], axis=1)


def _layout(shapes: Sequence[Sequence[tuple[int, int]]]) -> Layout:
    """The columns of values whose axes have these widths and counts, in turn."""
    layout: list[list[Indices]] = []
    first = 0
    for value in shapes:
        layout.append([])
        for width, count in value:
            layout[-1] += [np.arange(first, first + width)] * count
            first += width
    return layout


class _Columns:
    """The columns of one parameter; where a value is, is worked out once."""

    def __init__(self, axes: Sequence[_Axes]) -> None:
        self._axes = axes
        self._width = sum(each.width for each in axes)
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
        return [x for axes in self._axes for x in axes.place(value)]


def _values(parameter: Parameter) -> list[list[_Axes]]:
    """The axes of a parameter, or of each element of a list."""
    if isinstance(parameter, ListOf):
        inner = _values(parameter.inner)
        return [[_of_element(i, axes) for axes in value] for i in range(parameter.length) for value in inner]
    values = parameter.values()
    if values is not None and (isinstance(values, range) or all(type(v) in (int, float) for v in values)):
        return [_ordered(values)]
    return [[_spread(parameter, values)]]


def _of_element(index: int, axes: _Axes) -> _Axes:
    return replace(axes, place=lambda value: axes.place(value[index]))


def _ordered(values: Sequence[Any]) -> list[_Axes]:
    is_switch = len(values[:3]) < 3  # len(values) is limited to a machine word
    size = _Axes(_by_logarithm(values) or _by_rank(values), count=1 if is_switch else _SCALES)
    levels = [] if is_switch else _levels(values)
    if len(levels) < 2:
        return [size]
    least, extent = levels[0], levels[-1] - levels[0]
    return [size, _Axes(lambda value: [(_halvings(value) - least) / extent])]


def _by_logarithm(values: Sequence[Any]) -> Callable[[Any], list[float]] | None:
    """None where a value has no logarithm, or all have the same."""
    ends = (values[0], values[-1]) if isinstance(values, range) else values
    if not all(0 < value < math.inf for value in ends):
        return None
    low, high = math.log(min(ends)), math.log(max(ends))
    return (lambda value: [(math.log(value) - low) / (high - low)]) if high > low else None


def _by_rank(values: Sequence[Any]) -> Callable[[Any], list[float]]:
    if isinstance(values, range):
        low, length = values[0], abs(values[-1] - values[0]) or 1
        return lambda value: [(value - low) / length]
    last = max(1, len(values) - 1)
    ranks = {value: rank / last for rank, value in enumerate(sorted(values))}
    return lambda value: [ranks[value]]


def _levels(values: Sequence[Any]) -> list[float]:
    """How often 2 divides the values, each number once; none where that says nothing."""
    if isinstance(values, range):
        return [float(n) for n in range(_MOST_HALVINGS + 1)]
    is_plain = all(type(v) is int and v & (v - 1) == 0 for v in values) or any(type(v) is float for v in values)
    return [] if is_plain else sorted({_halvings(v) for v in values})


def _halvings(value: int) -> float:
    """How often 2 divides ``value``."""
    return float(min(_MOST_HALVINGS, (value & -value).bit_length() - 1) if value else _MOST_HALVINGS)


def _spread(parameter: Parameter, values: Sequence[Any] | None) -> _Axes:
    """An axis of what :meth:`Parameter.encode` says, scaled so that values are on average a unit apart."""
    rng = random.Random(0)
    probes = [parameter.sample(rng) for _ in range(_PROBES)] if values is None or len(values) > _PROBES else values
    rows = np.array([parameter.encode(value) for value in probes], float)
    distances = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(axis=2))
    apart = distances[distances > 0]
    scale = 1.0 / float(apart.mean()) if apart.size and math.isfinite(apart.mean()) else 1.0
    return _Axes(lambda value: [x * scale for x in parameter.encode(value)], parameter.width)
