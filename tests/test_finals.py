"""The finals: who is compared, when a finalist is out, how good the choice is and what it costs.

Kernels are made up: their latencies are known, their readings drift together and scatter one by one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import pytest

from pytest_kerneltune import PythonKernel, integer
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.finals import MATTERS, Placed, play_finals, undecided
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Status, Trial

FIXED_BLOCKS = 8  # what a comparison of fixed length would take
DRIFT, OUTLIERS = 0.02, 0.02
GPU_NOISE, CPU_NOISE = 0.004, 0.03  # standard deviation of a block


@dataclass
class Machine:
    """Compares kernels whose latencies are ``true``; ``calls`` lists the arms and blocks of each comparison."""

    true: Mapping[int, float]
    noise: float = 0.0
    seed: int = 0
    calls: list[tuple[list[int], int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def compare(self, arms: Mapping[str, Config], yardsticks: bool, blocks: int) -> dict[str, list[float]]:
        assert not yardsticks
        self.calls.append(([c["n"] for c in arms.values()], blocks))
        values: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(blocks):
            drift = self._rng.gauss(0, DRIFT) if self.noise else 0.0
            for name, config in arms.items():
                values[name].append(self.true[config["n"]] * math.exp(drift + self._scatter()))
        return values

    def _scatter(self) -> float:
        if not self.noise:
            return 0.0
        return self._rng.gauss(0, self.noise) + 0.2 * (self._rng.random() < OUTLIERS)

    @property
    def cost(self) -> int:
        """Blocks of all arms together."""
        return sum(len(arms) * blocks for arms, blocks in self.calls)


def trials_of(*measured: tuple[int, float]) -> list[Trial]:
    return [Trial({"n": n}, latency_ms=ms) for n, ms in measured]


def order(ranked: Sequence[Placed]) -> list[int]:
    return [placed.config["n"] for placed in ranked]


def final(true: Sequence[float], noise: float, seed: int = 0) -> tuple[float, int]:
    """How much slower than the best the winner is, and the cost; the search's readings tell nothing."""
    machine = Machine(dict(enumerate(true)), noise, seed)
    ranked = play_finals(machine, trials_of(*((n, 1.0) for n in range(len(true)))))
    return true[order(ranked)[0]] / min(true) - 1, machine.cost


# Who is compared


def test_the_winner_is_the_best_of_the_finalists_when_compared() -> None:
    machine = Machine({1: 3.0, 2: 2.0, 3: 1.0})
    ranked = play_finals(machine, trials_of((1, 1.0), (2, 1.1), (3, 1.14), (4, 1.2)))
    assert order(ranked) == [3, 2, 1]
    assert [placed.relative for placed in ranked] == pytest.approx([1.0, 2.0, 3.0])
    assert machine.calls[0][0] == [1, 2, 3]


def test_few_are_finalists_and_kept_configs_always_are() -> None:
    machine = Machine(dict.fromkeys(range(20), 1.0))
    many = trials_of(*((n, 1.0 + n / 1000) for n in range(10)), (15, 9.0), (16, 9.0))
    keep = [{"n": 15}, {"n": 17}, {"n": 3}]
    ranked = play_finals(machine, [*many, Trial({"n": 17}, Status.CRASH)], keep)
    assert sorted(order(ranked)) == [0, 1, 2, 3, 4, 15]


def test_a_single_finalist_needs_no_comparison() -> None:
    machine = Machine({})
    assert play_finals(machine, trials_of((1, 1.0), (2, 5.0))) == [({"n": 1}, 1.0, ())]
    assert machine.calls == []


@pytest.mark.parametrize("trials", [[], [Trial({"n": 1}, Status.CRASH)]])
def test_no_winner_without_a_success(trials: list[Trial]) -> None:
    with pytest.raises(KernelError, match="no config worked"):
        play_finals(Machine({}), trials)


# When a finalist is out


def test_nobody_is_out_before_there_are_enough_blocks() -> None:
    assert undecided({"a": [1.0] * 3, "b": [9.0] * 3}, ["a", "b"]) == ["a", "b"]
    assert undecided({"a": [1.0] * 4, "b": [9.0] * 4}, ["a", "b"]) == ["a"]
    assert undecided({"a": [9.0] * 4, "b": [1.0] * 4}, ["a", "b"]) == ["b"]


def test_among_equals_the_first_one_stays() -> None:
    slower = 1 + MATTERS / 2
    assert undecided({"a": [1.0] * 4, "b": [1.0] * 4, "c": [1.0] * 4}, ["a", "b", "c"]) == ["a"]
    assert undecided({"a": [slower] * 4, "b": [1.0] * 4}, ["a", "b"]) == ["a"]
    assert undecided({"a": [1.0] * 4, "b": [slower] * 4}, ["a", "b"]) == ["a"]


def test_who_may_be_faster_or_slower_by_what_matters_stays() -> None:
    restless = [0.97, 1.03, 0.98, 1.035]
    assert undecided({"a": [1.0] * 4, "b": restless}, ["a", "b"]) == ["a", "b"]
    assert undecided({"a": restless, "b": [1.0] * 4}, ["a", "b"]) == ["a", "b"]


def test_at_least_one_is_always_left() -> None:
    rng = random.Random(0)
    for _ in range(300):
        names = [f"arm{i}" for i in range(rng.randint(1, 6))]
        blocks = {name: [rng.lognormvariate(0, rng.choice([0.001, 0.01, 0.1])) for _ in range(8)] for name in names}
        left = undecided(blocks, names)
        assert left
        assert left == [name for name in names if name in left]


def test_the_configs_to_keep_win_among_equals_then_the_earlier_ones() -> None:
    machine = Machine({n: 1.0 + 0.001 * (n == 2) for n in range(4)})
    trials = trials_of((3, 1.02), (2, 1.03), (1, 1.01), (0, 1.0))
    assert order(play_finals(machine, trials))[0] == 3
    assert order(play_finals(machine, trials, keep=[{"n": 2}]))[0] == 2
    assert order(play_finals(Machine({0: 1.0, 1: 1.0, 2: 1.1, 3: 1.0}), trials, keep=[{"n": 2}]))[0] == 3


# How good and how dear the choice is

CLEAR = [1.1, 1.0, 1.05, 1.12, 1.08]
CASES = [CLEAR, [1.02, 1.0, 1.04, 1.03, 1.05], [1.0, 1.0, 1.0], [1.015, 1.02, 1.03, 1.015, 1.0], [1.01, 1.003, 1.0]]


@pytest.mark.parametrize("true", CASES)
def test_on_a_gpu_the_winner_is_hardly_ever_a_hundredth_slower_than_the_best(true: Sequence[float]) -> None:
    losses = [final(true, GPU_NOISE, seed)[0] for seed in range(100)]
    assert sum(loss > 0.0101 for loss in losses) <= 1


def test_clear_cases_take_half_the_blocks_of_a_fixed_comparison() -> None:
    for noise, share in ((GPU_NOISE, 0.6), (CPU_NOISE, 0.9)):
        costs = [final(CLEAR, noise, seed)[1] for seed in range(100)]
        assert sum(costs) / 100 <= share * FIXED_BLOCKS * len(CLEAR)


def test_unclear_cases_take_longer_than_clear_ones_but_not_for_ever() -> None:
    costs = [final([1.0, 1.01, 1.005], CPU_NOISE, seed)[1] for seed in range(50)]
    assert max(costs) <= 3 * 24
    assert sum(costs) / 50 > 2 * 3 * 4


def test_finalists_take_turns_at_being_in_the_middle() -> None:
    machine = Machine({0: 1.0, 1: 1.0, 2: 1.0}, noise=0.05)
    play_finals(machine, trials_of((0, 1.0), (1, 1.0), (2, 1.0)))
    assert [arms for arms, _ in machine.calls[:2]] == [[0, 1, 2], [1, 2, 0]]


def ticking(step_s: float) -> Callable[[], float]:
    """A clock that is ``step_s`` later each time somebody looks."""
    times: Iterator[int] = count()
    return lambda: step_s * next(times)


def test_past_its_time_the_order_is_taken_as_it_is() -> None:
    machine = Machine({1: 1.02, 2: 1.0, 3: 1.01}, CPU_NOISE)
    ranked = play_finals(machine, trials_of((1, 1.0), (2, 1.0), (3, 1.0)), limit_s=5.0, now=ticking(6.0))
    assert len(machine.calls) == 1
    assert len(ranked) == 3


def test_the_winner_of_a_real_kernel_is_its_quickest_config() -> None:
    def work(n: int) -> int:
        sum(range(2000 * (n + 1)))
        return 1

    space = ConfigSpace({"n": integer(0, 30)})
    bench = Benchmark(PythonKernel(work, reference=lambda: 1), space, Workers(1), Limits(run_s=5))
    bench.start()
    assert order(play_finals(bench, trials_of((30, 1.0), (3, 1.0), (23, 1.0))))[0] == 3
