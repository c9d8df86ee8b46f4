"""What the model of latencies learns from: this kernel's trials, and those of related ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest

from pytest_kerneltune.parameter import boolean, choice, integer
from pytest_kerneltune.search import DEFAULT_SEARCH, Context, Effort, Related, create
from pytest_kerneltune.search.coordinates import Coordinates
from pytest_kerneltune.search.transfer import standardised, telling, transferred
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import as_trial, drive
from pytest_kerneltune.trial import Config, Status, Trial

SPACE = ConfigSpace({"x": integer(0, 9), "y": integer(0, 9), "pad": boolean(), "mode": choice("a", "b", "c")})


def bowl(config: Config) -> float:
    return 1.0 + 0.1 * float((config["x"] - 6) ** 2 + (config["y"] - 2) ** 2) + 0.2 * bool(config["pad"])


def trials(count: int, measure: Callable[[Config], float] = bowl, seed: int = 0) -> tuple[Trial, ...]:
    configs = SPACE.sample_new(random.Random(seed), count, frozenset())
    return tuple(as_trial(c, measure) for c in configs)


def correlation(coordinates: Coordinates, measure: Callable[[Config], float] = bowl) -> float:
    """Of the last column with the logarithm of the latency, over the space."""
    configs = list(SPACE.enumerate())
    return float(np.corrcoef(coordinates.points(configs)[:, -1], np.log([measure(c) for c in configs]))[0, 1])


def test_standardised_targets_have_mean_0_and_deviation_1_in_the_order_of_the_latencies() -> None:
    latencies = np.random.default_rng(0).lognormal(size=50)
    targets = standardised(latencies)
    assert targets.mean() == pytest.approx(0, abs=1e-9)
    assert targets.std() == pytest.approx(1)
    np.testing.assert_array_equal(targets.argsort(), latencies.argsort())


def test_standardised_targets_do_not_depend_on_the_unit() -> None:
    latencies = np.random.default_rng(0).lognormal(size=50)
    np.testing.assert_allclose(standardised(1000 * latencies), standardised(latencies))


def test_standardised_targets_tell_fast_ones_apart_better_than_slow_ones() -> None:
    targets = standardised(np.array([1.0, 10.0, 100.0, 1000.0, 10_000.0]))
    steps = np.diff(targets)
    assert steps[0] == pytest.approx(steps[1])
    assert steps[1] > steps[2] > steps[3] > 0


@pytest.mark.parametrize("latencies", [[1.0], [0.1] * 3, [0.37] * 10, [1.1] * 7, [0.0, 0.0, 0.0], [0.0, 1e-300, 1e300]])
def test_standardised_targets_are_finite_and_equal_for_equal_latencies(latencies: list[float]) -> None:
    targets = standardised(np.array(latencies))
    assert np.isfinite(targets).all()
    assert len(set(targets.tolist())) <= len(set(latencies))


def test_all_trials_are_telling_where_they_are_few() -> None:
    some = trials(20)
    assert telling(some, 20) == list(some)
    assert telling((), 20) == []


@pytest.mark.parametrize(("known", "count"), [(21, 20), (39, 20), (300, 101), (300, 1)])
def test_of_many_trials_the_fastest_and_some_of_all_others_are_telling(known: int, count: int) -> None:
    some = trials(known, lambda c: math.inf if c["mode"] == "c" else bowl(c) + 1e-3 * (c["mode"] == "a"))
    chosen = telling(some, count)
    assert len({SPACE.key(t.config) for t in chosen}) == len(chosen) == count
    fastest = sorted(some, key=lambda t: t.latency_ms)[: count // 2]
    assert all(t in chosen for t in fastest)
    assert all(t in some for t in chosen)


def test_old_and_new_trials_are_telling_alike() -> None:
    some = [Trial({**SPACE.default, "x": i}, latency_ms=1.0 if i < 50 else 2.0 + i % 7) for i in range(1000)]
    others = [t.config["x"] for t in telling(some, 100) if t.latency_ms > 1]
    assert len(others) == 50
    assert 0.4 < sum(x > 500 for x in others) / len(others) < 0.6


def test_failures_are_telling_too() -> None:
    some = trials(300, lambda c: math.inf if c["x"] > 1 else 1.0 + c["y"])
    assert {t.ok for t in telling(some, 200)} == {True, False}


def added(informed: Coordinates) -> list[list[list[int]]]:
    """The layout of what comes after the parameters."""
    plain = Coordinates(SPACE).layout
    np.testing.assert_equal(informed.layout[: len(plain)], plain)
    return [[axis.tolist() for axis in value] for value in informed.layout[len(plain) :]]


def test_related_trials_are_one_more_axis_that_orders_configs_as_they_do() -> None:
    plain, informed = Coordinates(SPACE), transferred(SPACE, (trials(60),))
    assert added(informed) == [[[plain.width]]]
    configs = list(SPACE.enumerate())
    np.testing.assert_array_equal(informed.points(configs)[:, :-1], plain.points(configs))
    assert correlation(informed) > 0.9


def test_how_fast_the_related_kernel_is_does_not_matter() -> None:
    slower = transferred(SPACE, (trials(60, lambda c: 1000 * bowl(c)),))
    configs = list(SPACE.enumerate())
    expected = transferred(SPACE, (trials(60),)).points(configs)
    np.testing.assert_allclose(slower.points(configs), expected, atol=1e-2)


def test_each_of_several_related_kernels_is_an_axis_of_its_own() -> None:
    def other(config: Config) -> float:
        return float(1 + abs(config["x"] - 2))

    plain, both = Coordinates(SPACE), transferred(SPACE, (trials(60, other), trials(60)))
    assert added(both) == [[[plain.width]], [[plain.width + 1]]]
    configs = list(SPACE.enumerate())
    for place, source in ((-2, trials(60, other)), (-1, trials(60))):
        alone = transferred(SPACE, (source,)).points(configs)
        np.testing.assert_allclose(both.points(configs)[:, place], alone[:, -1])


def test_no_more_than_the_three_most_alike_are_asked() -> None:
    some = tuple(trials(20, seed=seed) for seed in range(5))
    assert len(added(transferred(SPACE, some))) == 3
    configs = list(SPACE.enumerate())
    np.testing.assert_array_equal(
        transferred(SPACE, some).points(configs), transferred(SPACE, some[:3]).points(configs)
    )


def test_failures_of_related_kernels_count_as_slow() -> None:
    informed = transferred(SPACE, (trials(100, lambda c: math.inf if c["mode"] == "c" else bowl(c)),))
    points = {c["mode"]: informed.points([c])[0, -1] for c in SPACE.neighbours({**SPACE.default, "x": 6, "y": 2})}
    assert points["c"] > points["b"] + 0.5


@pytest.mark.parametrize(
    "related",
    [
        (),
        ((), ()),
        (tuple(Trial(t.config, Status.CRASH) for t in trials(60)),),
        (tuple(Trial({**t.config, "x": 10}, latency_ms=1.0) for t in trials(60)),),
        (tuple(Trial({"z": i}, latency_ms=1.0) for i in range(60)),),
        (trials(1), trials(2)),
    ],
    ids=["none", "empty", "failures", "values outside the space", "another space", "too few"],
)
def test_related_trials_that_say_nothing_are_ignored(related: tuple[tuple[Trial, ...], ...]) -> None:
    assert not added(transferred(SPACE, related))
    assert len(added(transferred(SPACE, (*related, trials(60))))) == 1


def test_configs_outside_the_space_among_related_ones_are_left_out() -> None:
    odd = tuple(Trial({**t.config, "x": 10 + i}, latency_ms=1e-3) for i, t in enumerate(trials(30, seed=1)))
    configs = list(SPACE.enumerate())
    mixed, clean = transferred(SPACE, ((*odd, *trials(60)),)), transferred(SPACE, (trials(60),))
    np.testing.assert_array_equal(mixed.points(configs), clean.points(configs))


def test_related_trials_read_from_json_say_the_same() -> None:
    read = tuple(Trial.from_json(t.to_json()) for t in trials(60))
    configs = list(SPACE.enumerate())
    np.testing.assert_array_equal(
        transferred(SPACE, (read,)).points(configs), transferred(SPACE, (trials(60),)).points(configs)
    )


def test_related_latencies_that_are_all_equal_or_hugely_different() -> None:
    for measure in (lambda _: 0.37, lambda c: 10.0 ** (c["x"] - 4) * (1 + 1e5 * c["pad"])):
        points = transferred(SPACE, (trials(60, measure),)).points(list(SPACE.enumerate()))
        assert np.isfinite(points).all()
        assert np.abs(points[:, -1]).max() < 10


def test_many_related_trials() -> None:
    some = trials(600, lambda c: bowl(c) + 0.01 * (c["mode"] == "b"))
    assert correlation(transferred(SPACE, (some, some, some, some, some))) > 0.9


def needed(related: Related) -> float:
    """How many configs the default search measures until one is at most a tenth slower than the best; 21 for more."""

    def count(seed: int) -> int:
        search = create(DEFAULT_SEARCH, Effort.QUICK, Context(related=related))
        measured = drive(search, SPACE, bowl, 20, seed=seed)
        return next((i for i, t in enumerate(measured, start=1) if t.latency_ms <= 1.1), 21)

    return median(count(seed) for seed in range(3))


def test_a_good_relative_helps_and_one_that_misleads_does_little_harm() -> None:
    good, bad = trials(60, lambda c: 1000 * bowl(c), seed=1), trials(60, lambda c: 1 / bowl(c), seed=2)
    alone = needed(())
    assert needed((good,)) < alone - 2
    assert needed((bad,)) <= alone + 5
    assert needed((bad, good)) < alone - 2


def test_no_configs_and_the_same_config_twice() -> None:
    informed = transferred(SPACE, (trials(60),))
    assert informed.points([]).shape == (0, informed.width)
    twice = informed.points([SPACE.default, SPACE.default])
    np.testing.assert_array_equal(twice[0], twice[1])
