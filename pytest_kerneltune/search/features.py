"""Configs as rows of numbers, for models that learn from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from random import Random
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pytest_kerneltune.parameter import ListOf, Parameter
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

Rows: TypeAlias = npt.NDArray[np.float32]
"""One config a row; the type that scikit-learn grows trees on, so that no threshold is rounded past a value."""

_Encoding: TypeAlias = Callable[[Any], list[float]]
_LARGEST = 1e38  # what still fits
_MOST_PAIRS = 40  # more columns make trees slow to grow


class Encoder:
    """Turns configs of a space into rows; ``owners`` holds the parameter that each column belongs to.

    A parameter's columns are its own encoding, with two differences. A choice among numbers is encoded by their order.
    Whole numbers get a second column, how often 2 divides them: hardware comes in powers of two, so that 96 threads
    have more in common with 32 and 64 than with 90.
    """

    def __init__(self, space: ConfigSpace) -> None:
        self._encodings = {name: _encoding(p) for name, p in space.parameters.items()}
        self._known: dict[str, dict[str, list[float]]] = {name: {} for name in space.parameters}
        self.owners = [name for name, value in space.default.items() for _ in self._encode(name, value)]

    def rows(self, configs: Sequence[Config]) -> Rows:
        flat = [x for config in configs for name in self._encodings for x in self._encode(name, config[name])]
        return np.array(flat).clip(-_LARGEST, _LARGEST).astype(np.float32).reshape(len(configs), len(self.owners))

    def parameters(self, column: int) -> tuple[str, ...]:
        """The parameters that a column depends on."""
        return (self.owners[column],)

    def _encode(self, name: str, value: Any) -> list[float]:
        token = repr(value)  # tells True from 1, which a dict would not
        known = self._known[name]
        if token not in known:
            known[token] = self._encodings[name](value)
        return known[token]


class PairEncoder(Encoder):
    """Rows with two more columns for each pair of sizes: the logarithms of their product and of their ratio.

    A size is a parameter of positive numbers, more than two of them, or an element of a list of such. What a kernel
    asks of the hardware are products and ratios of sizes (threads of a block, bytes of a tile, results a thread), which
    trees, as they split by one column at a time, are slow to find. Of many pairs ``rng`` draws some.
    """

    def __init__(self, space: ConfigSpace, rng: Random) -> None:
        super().__init__(space)
        self._sized = [name for name, p in space.parameters.items() if _is_size(p)]
        owners = [name for name in self._sized for _ in _logarithms(space.default[name])]
        self._sizes = len(owners)
        pairs = list(combinations(range(self._sizes), 2))
        pairs = sorted(rng.sample(pairs, _MOST_PAIRS)) if len(pairs) > _MOST_PAIRS else pairs
        self._left, self._right = [i for i, _ in pairs], [j for _, j in pairs]
        self._paired = 2 * [(owners[i], owners[j]) for i, j in pairs]

    def rows(self, configs: Sequence[Config]) -> Rows:
        plain = super().rows(configs)
        sizes = [[x for name in self._sized for x in _logarithms(config[name])] for config in configs]
        logs = np.array(sizes, float).reshape(len(configs), self._sizes)
        left, right = logs[:, self._left], logs[:, self._right]
        return np.concatenate([plain, left + right, left - right], axis=1).astype(np.float32)

    def parameters(self, column: int) -> tuple[str, ...]:
        return super().parameters(column) if column < len(self.owners) else self._paired[column - len(self.owners)]


def _is_size(parameter: Parameter) -> bool:
    if isinstance(parameter, ListOf):
        return _is_size(parameter.inner)
    values = (parameter.values() if parameter.size > 2 else None) or ()
    if isinstance(values, range):
        return values[0] > 0
    return len(values) > 0 and all(type(v) in (int, float) and v > 0 for v in values)


def _logarithms(value: Any) -> list[float]:
    return [math.log2(min(v, _LARGEST)) for v in (value if isinstance(value, tuple) else (value,))]


def _encoding(parameter: Parameter) -> _Encoding:
    values = parameter.values() or ()
    is_range = isinstance(values, range)
    if parameter.size <= 2 or not (is_range or (values and all(type(v) in (int, float) for v in values))):
        return parameter.encode
    position = parameter.encode if parameter.width == 1 else _rank(values)
    if is_range or (all(type(v) is int for v in values) and any(v & (v - 1) for v in values)):
        return lambda value: [*position(value), float((value & -value).bit_length())]
    return position


def _rank(values: Sequence[Any]) -> _Encoding:
    ranks = {value: float(rank) for rank, value in enumerate(sorted(values))}
    return lambda value: [ranks[value]]
