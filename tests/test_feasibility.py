"""Feasibility: where configs fail, learned from failures and from what compiled code demands."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from pytest_kerneltune.parameter import integer, power_of_two
from pytest_kerneltune.search.coordinates import Coordinates
from pytest_kerneltune.search.feasibility import Feasibility
from pytest_kerneltune.search.surrogate import GaussianProcessSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import drive
from pytest_kerneltune.trial import Config, Status, Trial

TILES = ConfigSpace({"m": power_of_two(16, 256), "n": power_of_two(16, 256), "stages": integer(1, 6)})
LIMIT = 3 * (128 + 256)


def demand(config: Config) -> float:
    return float((config["m"] + config["n"]) * config["stages"] / LIMIT)


def tile(config: Config) -> Trial:
    """Larger is faster, up to what fits."""
    asked = demand(config)
    if asked > 1:
        return Trial(config, Status.OUT_OF_RESOURCES, demand=asked)
    return Trial(
        config, latency_ms=1.0 + 1000.0 / (config["m"] * config["n"] / 64 + 10 * config["stages"]), demand=asked
    )


def sampled(count: int) -> list[Trial]:
    return [tile(c) for c in TILES.sample_new(random.Random(1), count, frozenset())]


def discounts(trials: list[Trial]) -> tuple[np.ndarray, np.ndarray]:
    """The discounts of all configs that fit, and of those that do not."""
    coordinates = Coordinates(TILES)
    model = Feasibility(coordinates)
    model.learn(coordinates.points([t.config for t in trials]), trials, refit=True)
    all_of_them = list(TILES.enumerate())
    found, fits = model.discount(coordinates.points(all_of_them)), np.array([demand(c) <= 1 for c in all_of_them])
    return found[fits], found[~fits]


def test_demands_tell_what_fits_far_better_than_failures_do() -> None:
    told = sampled(20)
    untold = [replace(t, demand=0.0) for t in told]

    def right(trials: list[Trial]) -> float:
        fitting, failing = discounts(trials)
        return fmean([*(fitting > -1), *(failing < -1)])

    assert right(told) > 0.95
    assert right(told) > right(untold) + 0.05


def test_demands_warn_before_anything_failed() -> None:
    trials = [t for t in sampled(60) if t.ok][:20]
    fitting, failing = discounts(trials)
    assert fitting.mean() > -0.5
    assert failing.mean() < -2


@pytest.mark.parametrize("asked", [0.0, 0.5], ids=["unknown", "all alike"])
def test_where_nothing_failed_and_demands_say_nothing_there_is_no_discount(asked: float) -> None:
    trials = [Trial(t.config, latency_ms=1.0, demand=asked) for t in sampled(20)]
    assert not np.concatenate(discounts(trials)).any()


def test_failures_that_demands_do_not_explain_are_learned_as_such() -> None:
    trials = [
        replace(t, status=Status.WRONG, latency_ms=math.inf) if t.config["stages"] == 1 else t for t in sampled(60)
    ]
    coordinates = Coordinates(TILES)
    model = Feasibility(coordinates)
    model.learn(coordinates.points([t.config for t in trials]), trials, refit=True)
    wrong, right = [{"m": 64, "n": 64, "stages": s} for s in (1, 3)]
    assert model.discount(coordinates.points([wrong]))[0] < -1 < model.discount(coordinates.points([right]))[0]


def test_a_search_that_is_told_demands_fails_less() -> None:
    told = [drive(GaussianProcessSearch(), TILES, tile, 30, seed) for seed in range(3)]
    untold = [drive(GaussianProcessSearch(), TILES, lambda c: tile(c).latency_ms, 30, seed) for seed in range(3)]
    assert sum(not t.ok for run in told for t in run) < sum(not t.ok for run in untold for t in run)
