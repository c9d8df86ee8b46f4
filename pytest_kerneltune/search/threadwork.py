"""How much of a tile each thread gets, where a space has sizes of tiles and Triton's number of warps.

What a kernel needs of registers, and whether its loads are wide, depends on the elements of a tile for each thread:
on a product of sizes over the number of warps. No single one of the parameters says that, and a model that knows them
only one by one has to see many combinations of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, TypeAlias

from pytest_kerneltune.parameter import ListOf, Parameter
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

_WARPS = "num_warps"
_TILE = re.compile("block|tile|rows|cols", re.IGNORECASE)
_MOST_SIZES = 4  # whose pairs are told apart

_Size: TypeAlias = tuple[str, int | None, float]
"""Name of a size, its place in a list, and the extent of its logarithm to base 2."""


def work_axes(space: ConfigSpace) -> list[Callable[[Config], float]]:
    """For every two sizes of a tile, or the only one: their product per warp on a logarithmic scale a unit long."""
    warps = space.parameters.get(_WARPS)
    extent = _extent(warps) if warps else None
    if extent is None:
        return []
    sizes = [size for name, p in space.parameters.items() if _TILE.search(name) for size in _sizes(name, p)]
    chosen = sizes[:_MOST_SIZES]
    return [_axis(pair, extent) for pair in combinations(chosen, min(2, len(chosen))) if pair]


def _sizes(name: str, parameter: Parameter) -> Iterator[_Size]:
    inner, places = (parameter.inner, range(parameter.length)) if isinstance(parameter, ListOf) else (parameter, [None])
    extent = _extent(inner)
    if extent is not None:
        yield from ((name, place, extent) for place in places)


def _extent(parameter: Parameter) -> float | None:
    """The logarithm to base 2 of the largest over the smallest value; None where values are no powers of two."""
    values = parameter.values() or ()
    if not values or not all(type(v) is int and v > 0 and v & (v - 1) == 0 for v in values):
        return None
    return math.log2(max(values) / min(values))


def _axis(sizes: tuple[_Size, ...], warps_extent: float) -> Callable[[Config], float]:
    scale = 1 / max(1.0, warps_extent + sum(extent for *_, extent in sizes))

    def place(config: Config) -> float:
        product = sum(math.log2(_value(config[name], index)) for name, index, _ in sizes)
        return scale * (product - math.log2(config[_WARPS]))

    return place


def _value(value: Any, index: int | None) -> Any:
    return value if index is None else value[index]
