"""What a search is told before it begins: trials of related kernels, and how many configs are compiled at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pytest

from pytest_kerneltune import CKernel, PythonKernel, integer, power_of_two
from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.cache import Entry
from pytest_kerneltune.keeping import Choice, label
from pytest_kerneltune.parameter import Parameter
from pytest_kerneltune.search import SEARCHES, Context, Effort, Proposals, Related
from pytest_kerneltune.session import Session
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Trial
from pytest_kerneltune.workload import Workload

PARAMETERS: dict[str, Parameter] = {"x": integer(0, 99), "tile": power_of_two(1, 64)}
BASE = ({"x": 1, "tile": 4}, {"x": 2, "tile": 8}, {"x": 3, "tile": 16})
TOLD: list[Context] = []


@dataclass(frozen=True)
class Spy:
    """Measures the user's configs, and keeps what it was told."""

    configs: tuple[Config, ...] = ()
    related: Related = ()

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:  # noqa: ARG003 - all of them, at any effort
        TOLD.append(context)
        return cls(context.configs, context.related)

    @property
    def used_related(self) -> Related:
        return self.related

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        known = {space.key(t.config) for t in prior}
        if new := [c for c in self.configs if space.key(c) not in known]:
            yield new


Tune = Callable[..., Choice]


@pytest.fixture
def tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tune]:
    """Tunes a workload in a session of its own, with the one cache of the test."""
    monkeypatch.setitem(SEARCHES, "Spy", __name__)
    TOLD.clear()

    def run(workload: Workload, **options: str) -> Choice:
        ini = {"compile_jobs": options.pop("compile_jobs", "2")}
        given = {"autotune": "Spy", "autotune_cache": str(tmp_path / "cache"), **options}
        session = Session(Settings.from_sources(given.get, ini.get, {}, tmp_path))
        try:
            bench = session.benchmark(workload)
            bench.start()
            return session.tuner.tuned(workload, bench, ())
        finally:
            session.close()

    yield run
    TOLD.clear()


def kernel(**config: int) -> int:
    return sum(config.values())


def edited(**config: int) -> int:
    return sum(config.values()) + 0


def workload(name: str = "sum[n1024]", configs: Sequence[Config] = BASE, **changes: Any) -> Workload:
    made: Kernel = PythonKernel(kernel)
    device = {"cpu": "some model"}
    plain = Workload(name, "perf/test_it.py", made, ConfigSpace(PARAMETERS), device_key=device)
    return replace(plain, configs=tuple(configs), **changes)


def breakable(**config: int) -> int:
    if config["x"] == BASE[0]["x"] and Path("broken").exists():
        raise RuntimeError("not with this driver")
    return sum(config.values())


def told() -> list[list[Config]]:
    """The configs of the related kernels that the last search was told of."""
    return [[t.config for t in trials] for trials in TOLD[-1].related]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "sum[n4096]"},
        {"kernel": PythonKernel(edited)},
        {"file": "elsewhere/test_it.py", "name": "sum"},
        {"space": ConfigSpace(PARAMETERS, lambda c: c["x"] < 50)},
        {"device_key": {"cpu": "another model"}},
    ],
    ids=["other size", "edited", "moved", "other constraint", "other device"],
)
def test_a_search_starts_from_what_is_known_of_the_same_kernel(tune: Tune, changes: dict[str, Any]) -> None:
    tune(workload())
    found = tune(workload(configs=BASE[:1], **{"name": "sum[n1024]", **changes}))
    assert told() == [list(BASE)]
    assert found.summary.messages == ("started from 3 configs of 1 related kernel",)


@pytest.mark.parametrize(
    "changes",
    [{"name": "product[n1024]"}, {"file": "perf/test_other.py"}],
)
def test_other_kernels_are_not_related(tune: Tune, changes: dict[str, Any]) -> None:
    tune(workload())
    found = tune(workload(configs=BASE[:1], **{"name": "sum[n1024]", **changes}))
    assert told() == []
    assert found.summary.messages == ()


def test_a_kernels_own_trials_are_prior_and_not_related(tune: Tune) -> None:
    tune(workload(configs=BASE[:2]), autotune_configs="2")
    found = tune(workload())
    assert told() == []
    assert found.summary.messages == ("continued from 2 configs that an earlier run measured",)


def test_tuning_anew_starts_from_related_kernels_too(tune: Tune) -> None:
    tune(workload())
    tune(workload("sum[n2048]", BASE[:2]))
    found = tune(workload(), autotune_force="yes")
    assert told() == [list(BASE[:2])]
    assert found.summary.attempts == 3


def test_the_nearest_come_first_and_an_edit_before_all(tune: Tune) -> None:
    for number, name in enumerate(["sum[n16]", "sum[n1000]", "sum[n4096]"]):
        tune(workload(name, BASE[number : number + 1]))
    tune(workload(configs=BASE[:2], kernel=PythonKernel(edited)))
    tune(workload())
    assert told() == [list(BASE[:2]), [BASE[1]], [BASE[2]], [BASE[0]]]


def test_configs_that_the_space_no_longer_has_are_left_out(tune: Tune) -> None:
    tune(workload())
    tune(workload("sum[n1]", BASE[:1]))
    narrow = ConfigSpace({**PARAMETERS, "x": integer(2, 99)})
    found = tune(workload("sum[n2048]", BASE[1:], space=narrow))
    assert told() == [list(BASE[1:])]
    assert found.summary.messages == ("started from 2 configs of 1 related kernel",)


def test_related_configs_are_normalised(tune: Tune) -> None:
    tune(workload())
    conditional = ConfigSpace({**PARAMETERS, "tile": power_of_two(1, 64, when={"x": 3})})
    tune(workload(configs=(), space=conditional))
    assert told() == [[{"x": 1, "tile": 1}, {"x": 2, "tile": 1}, {"x": 3, "tile": 16}]]


def test_without_a_cache_nothing_is_related(tune: Tune) -> None:
    tune(workload())
    tune(workload("sum[n2048]"), autotune_cache="off")
    assert told() == []


def test_failures_of_related_kernels_are_told_too(tune: Tune) -> None:
    def picky(**config: int) -> int:
        return 1 // (config["x"] - 1)

    tune(workload(kernel=PythonKernel(picky)))
    tune(workload())
    assert [t.ok for t in TOLD[-1].related[0]] == [False, True, True]


def test_a_search_that_uses_no_related_trials_says_nothing(tune: Tune) -> None:
    tune(workload())
    found = tune(workload("sum[n2048]", BASE[:1]), autotune="FiniteSearch")
    assert found.summary.messages == ()


def test_a_tree_search_measures_the_best_related_configs_first(tune: Tune) -> None:
    tune(workload())
    found = tune(workload("sum[n2048]", ()), autotune="LFBOTreeSearch", autotune_configs="4")
    assert [t.config for t in found.trials[:1]] == [{"x": 0, "tile": 1}]
    assert sorted(t.config["x"] for t in found.trials[1:4]) == [1, 2, 3]
    assert found.summary.messages == ("started from 3 configs of 1 related kernel",)


@pytest.mark.parametrize(("effort", "count"), [("quick", 1), ("full", 0)])
def test_what_is_said_of_related_kernels_is_true_at_every_effort(tune: Tune, effort: str, count: int) -> None:
    tune(workload())
    found = tune(workload("sum[n2048]"), autotune="LFBOTreeSearch", autotune_configs="4", autotune_effort=effort)
    assert found.summary.messages == ("started from 3 configs of 1 related kernel",) * count


def test_related_kernels_of_which_nothing_works_are_nothing_to_start_from(tune: Tune) -> None:
    def broken(**_: int) -> int:
        raise ValueError

    tune(workload(kernel=PythonKernel(broken)))
    found = tune(workload())
    assert told() == [list(BASE)]
    assert found.summary.messages == ()


@pytest.mark.parametrize(("jobs", "expected"), [("1", 1), ("3", 3), ("64", 8)])
def test_a_search_is_told_how_many_configs_are_compiled_at_once(tune: Tune, jobs: str, expected: int) -> None:
    compiled = CKernel("int one(void) { return 1; }", "one", returns=int)
    space = ConfigSpace({"UNUSED": integer(0, 9)})
    tune(workload("one", ({"UNUSED": 1},), kernel=compiled, space=space), compile_jobs=jobs)
    tune(workload(), compile_jobs=jobs)
    assert [context.parallel for context in TOLD] == [expected, 1]


def test_a_target_is_reached_by_what_this_run_measured_only(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = tune(workload(kernel=PythonKernel(breakable), configs=BASE[:1]), autotune_target="10s")
    assert (first.config, first.summary.stopped) == (BASE[0], "target latency of 10 s reached")
    assert tune(workload(kernel=PythonKernel(breakable)), autotune_target="10s").summary.source == "cache"
    Path("broken").touch()  # as after an update of the driver
    found = tune(workload(kernel=PythonKernel(breakable), configs=BASE), autotune_target="10s")
    assert found.summary.source == "search"
    assert found.config in BASE[1:]


def test_a_target_that_was_missed_does_not_unmake_the_entry(tune: Tune) -> None:
    limits = {"autotune_target": "1ns", "autotune_configs": "2"}
    assert tune(workload(), **limits).summary.source == "search"
    assert tune(workload(), **limits).summary.source == "cache"


def test_what_an_entry_says_of_itself_is_one_line() -> None:
    entry = Entry("ab" * 32, "sum[n8]\n# Rules\x1b[2J", (), None, inputs=("x: float32[8]", "y" * 10_000))
    text = label(entry, "cpu")
    assert text.startswith("sum[n8] # Rules [2J; x: float32[8]; yyy")
    assert text.isprintable()
    assert len(text) == 1000


def slow_first(**config: int) -> int:
    return sum(range(50_000 if config["x"] == BASE[0]["x"] else 1))


def test_a_smaller_search_made_anew_does_not_unmake_the_winner_of_a_larger_one(tune: Tune) -> None:
    slow, kernel = BASE[0], PythonKernel(slow_first)
    best = tune(workload(kernel=kernel), autotune_effort="full").config
    assert best in BASE[1:]
    assert tune(workload(kernel=kernel, configs=[slow]), autotune_force="yes", autotune_effort="quick").config == slow
    found = tune(workload(kernel=kernel), autotune_effort="full")
    assert (found.config, found.summary.source) == (best, "cache")
    assert tune(workload(kernel=kernel, configs=[slow]), autotune_force="yes", autotune_effort="full").config == slow
    assert tune(workload(kernel=kernel), autotune_effort="full").config == slow


def fragile(**config: int) -> int:
    broken = Path("broken").read_text() if Path("broken").exists() else ""
    if str(config["x"]) in broken.split():
        raise RuntimeError("not with this driver")
    return sum(config.values())


def test_where_nothing_that_is_known_works_the_kernel_is_tuned_anew(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kernel, limits = PythonKernel(fragile), {"autotune_configs": "2"}
    tune(workload(kernel=kernel, configs=BASE[:2]), **limits)
    Path("broken").write_text("1 2")  # as after an update of the driver
    found = tune(workload(kernel=kernel, configs=BASE[2:]), **limits)
    assert (found.config, found.summary.messages) == (BASE[2], ())
    Path("broken").write_text("1 2 3")  # as on a machine that is out of order
    assert tune(workload(kernel=kernel), **limits).config is None
    Path("broken").unlink()
    found = tune(workload(kernel=kernel), **limits)
    assert (found.config, found.summary.source) == (BASE[2], "cache")
