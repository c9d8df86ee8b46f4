"""The axes that say how much of a tile each thread gets."""

from __future__ import annotations

import random

import pytest

from pytest_kerneltune.parameter import Parameter, choice, integer, list_of, power_of_two
from pytest_kerneltune.search.coordinates import Coordinates
from pytest_kerneltune.search.threadwork import work_axes
from pytest_kerneltune.space import ConfigSpace

PRODUCT = ConfigSpace(
    {
        "BLOCK_M": power_of_two(32, 256),
        "BLOCK_N": power_of_two(32, 256),
        "GROUP_M": choice(1, 8),
        "num_warps": power_of_two(2, 16),
        "num_stages": integer(1, 5),
    }
)


def test_a_tile_of_twice_the_size_with_twice_the_warps_is_in_the_same_place() -> None:
    (axis,) = work_axes(PRODUCT)
    small = {"BLOCK_M": 64, "BLOCK_N": 64, "GROUP_M": 1, "num_warps": 4, "num_stages": 3}
    assert axis({**small, "BLOCK_N": 128, "num_warps": 8}) == pytest.approx(axis(small))
    assert axis({**small, "GROUP_M": 8, "num_stages": 1}) == axis(small)
    assert axis({**small, "num_warps": 8}) < axis(small) < axis({**small, "BLOCK_M": 128})


def test_an_axis_is_a_unit_long() -> None:
    (axis,) = work_axes(PRODUCT)
    places = [axis(c) for c in PRODUCT.enumerate()]
    assert max(places) - min(places) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ({"ROWS": power_of_two(1, 16)}, 1),
        ({"BLOCK_M": power_of_two(16, 64), "BLOCK_N": power_of_two(16, 64), "BLOCK_K": power_of_two(16, 64)}, 3),
        ({"block_sizes": list_of(power_of_two(16, 128), 2)}, 1),
        ({"block_sizes": list_of(power_of_two(16, 128), 9)}, 6),
        ({"BLOCK": integer(1, 100)}, 0),
        ({"BLOCK": choice(None, 16, 32)}, 0),
        ({"GROUP_M": power_of_two(1, 8)}, 0),
    ],
)
def test_sizes_of_tiles_are_told_by_name_and_values(sizes: dict[str, Parameter], count: int) -> None:
    space = ConfigSpace({**sizes, "num_warps": power_of_two(1, 8)})
    assert len(work_axes(space)) == count
    configs = space.sample_new(random.Random(0), 5, frozenset())
    coordinates = Coordinates(space)
    assert coordinates.points(configs).shape == (5, coordinates.width)
    assert coordinates.points([]).shape == (0, coordinates.width)
    work = coordinates.layout[len(coordinates.layout) - count :]
    last = range(coordinates.width - count, coordinates.width)
    assert [[axis.tolist() for axis in value] for value in work] == [[[column]] for column in last]


@pytest.mark.parametrize("warps", [{}, {"num_warps": choice(None, 4)}, {"num_warps": choice(3, 6)}])
def test_without_a_number_of_warps_there_are_none(warps: dict[str, Parameter]) -> None:
    assert work_axes(ConfigSpace({"BLOCK_M": power_of_two(16, 64), **warps})) == []
