"""Configs as rows of numbers, for models that learn from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pytest_kerneltune.parameter import Parameter
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

Rows: TypeAlias = npt.NDArray[np.float32]
"""One config a row; the type that scikit-learn grows trees on, so that no threshold is rounded past a value."""

_Encoding: TypeAlias = Callable[[Any], list[float]]
_LARGEST = 1e38  # what still fits


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

    def _encode(self, name: str, value: Any) -> list[float]:
        token = repr(value)  # tells True from 1, which a dict would not
        known = self._known[name]
        if token not in known:
            known[token] = self._encodings[name](value)
        return known[token]


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
