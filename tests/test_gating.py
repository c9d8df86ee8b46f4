"""One kernel at the gate: what it is compared with where a version or a baseline is missing, broken or untuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_kerneltune import PythonKernel, choice, judging
from pytest_kerneltune.against import Absent, BaseSide, Counterpart
from pytest_kerneltune.backends.tagged import tagged
from pytest_kerneltune.bases import SOURCE_DIGITS, Bases, History
from pytest_kerneltune.basetree import BaseTree
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.gating import Gate
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.outcome import VerdictSummary
from pytest_kerneltune.place import BaselinePlace
from pytest_kerneltune.record import Baseline, StoredSession
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Status, Trial
from pytest_kerneltune.workload import Workload

Repository = import_module("repositories").Repository
ONE: Config = {"block": 1}
TWO: Config = {"block": 2}
SPACE = ConfigSpace({"block": choice(1, 2)})
WORKLOAD = Workload("good", "test_it.py", PythonKernel(int), SPACE, test="test_it.py::test_good")
FACTS = {"device": "D", judging.METHOD: "wall clock, minimum"}

VERSION = """\
from pytest_kerneltune import choice, tunable

@tunable(space={"block": choice(1, 2)})
def good():
    return lambda block: block

def test_good(good): ...
"""


class Quiet(AbstractContextManager["Quiet"]):
    lasts = False

    def __exit__(self, *_: object) -> None:
        return None

    def disturbances(self) -> list[str]:
        return []

    def remarks(self) -> list[str]:
        return []

    def wait(self, seconds: float) -> list[str]:
        return []


CONTRACT = judging.Contract(FACTS, "wall", Quiet)


def settings(root: Path, **options: str) -> Settings:
    given = {"autotune": "none", "autotune_cache": str(root / "cache"), **options}
    return Settings.from_sources(given.get, lambda _: None, {}, root)


def stored(config: Config, source: str = "", commit: str = "", sessions: int = 1) -> Baseline:
    session = StoredSession(1.0, {"calibration": 1.0}, {"calibration": 1.0}, 0.01, 16, {}, {"commit": commit})
    return Baseline(config, FACTS, (session,) * sessions, source)


@dataclass
class Bench:
    """Takes ``ms`` for each config of today's version, ``other_ms`` for those of another one."""

    ms: Mapping[int, float]
    other_ms: Mapping[int, float] = field(default_factory=dict)
    crashes: bool = False
    kernel: PythonKernel = field(default_factory=lambda: PythonKernel(int))

    def compare(self, arms: Mapping[str, Config], _: bool, blocks: int, __: str) -> dict[str, list[float]]:
        if self.crashes:
            raise KernelError("the comparison failed: out of memory")
        values = {name: [self.of(config)] * blocks for name, config in arms.items()}
        return {**values, "calibration": [1.0] * blocks}

    def of(self, config: Config) -> float:
        return (self.other_ms if tagged(config, judging.OTHER) == config else self.ms)[config["block"]]

    def check(self, config: Config) -> Trial:
        return Trial(config, Status.OK)

    def code(self, _: Config) -> str:
        return ""

    def restart(self) -> None: ...


@dataclass
class Known:
    """Bases that were looked for before."""

    merge_base: judging.Base | Absent

    def at_merge_base(self, *_: Any) -> judging.Base | Absent:
        return self.merge_base

    def of_baseline(self, *_: Any) -> None: ...


Judged = Callable[..., tuple[judging.Measured, VerdictSummary, Gate]]


@pytest.fixture
def against(tmp_path: Path) -> Judged:
    """Judges a kernel of 1 ms with ``--against``."""

    def judged(found: judging.Base | Absent, baseline: Baseline | None = None, **options: str) -> Any:
        chosen = settings(tmp_path, against="main", missing_baseline="fail", **options)
        place = BaselinePlace(chosen, WORKLOAD, "D")
        bases = cast(Bases, Known(found))
        gate = Gate(chosen, WORKLOAD, place, baseline, CONTRACT, bases, {}, "pytest test_it.py --against=main")
        measured = gate.measure(cast(Benchmark, Bench({1: 1.0, 2: 1.0})), ONE)
        return measured, gate.judged(measured), gate

    return judged


def version(bench: Bench, runs: bool = True) -> judging.Base:
    return judging.Base("1a2b3c4", cast(Benchmark, bench), ONE, True, lambda _: runs)


def test_a_kernel_that_was_not_there_is_new_and_passes(against: Judged) -> None:
    measured, verdict, gate = against(Absent("there is no such kernel at 1a2b3c4", broken=False), stored(ONE))
    assert (verdict.kind, verdict.fails, verdict.basis) == ("new", False, "base")
    assert verdict.summary == "there is no such kernel at 1a2b3c4"
    assert measured.latency_ms == 1.0
    assert gate.young(verdict) == 0


BROKEN = {
    "absent": (Absent("its inputs are others there", broken=True), "its inputs are others there"),
    "nowhere": (
        version(Bench({}), runs=False),
        "measured beside 1a2b3c4: it does not run with {'block': 1} there: its space is another",
    ),
    "crashing": (version(Bench({}, crashes=True)), "measured beside 1a2b3c4: the comparison failed: out of memory"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_version_that_cannot_be_measured_leaves_the_baseline_to_decide(against: Judged, name: str) -> None:
    found, reason = BROKEN[name]
    _, verdict, _ = against(found)
    assert (verdict.kind, verdict.summary, verdict.fails) == ("incomparable", reason, False)
    _, verdict, gate = against(found, stored(ONE))
    assert (verdict.kind, verdict.basis, gate.young(verdict)) == ("ok", "baseline", 1)
    assert f"not compared side by side: {reason}" in verdict.remarks


def test_what_is_slower_than_the_merge_base_is_told_so_and_not_to_store_a_baseline(against: Judged) -> None:
    bench = Bench({1: 1.5}, {1: 1.0})
    measured, verdict, gate = against(version(bench), stored(ONE, sessions=2))
    assert (verdict.kind, verdict.fails, verdict.basis, gate.young(verdict)) == ("regressed", True, "base", 0)
    assert gate.previous_ms(measured) == 1.0
    assert verdict.details.splitlines()[0] == "good REGRESSED +50.0% [+44.1%, +56.1%]: 1 ms -> 1.5 ms"
    assert "  blame    code: with the same config it is slower than the base is today" in verdict.details
    assert "  accept   allow the kernel more with @tunable(threshold=...), or merge" in verdict.details
    _, accepted, _ = against(version(bench), update_baselines="regressed")
    assert (accepted.kind, accepted.fails) == ("regressed", False)


# The version that a baseline is of


def test_the_version_of_a_baseline_runs_the_baselines_config(tmp_path: Path) -> None:
    """Which it does not know itself: the baseline was stored after its commit."""
    repository = Repository(tmp_path / "project")
    commit = repository.commit({"test_it.py": VERSION})
    chosen = settings(repository.root, autotune="FiniteSearch")
    options = {"plugins": [], "folder": str(repository.root), "ini": "", "values": {}}

    def opened(_: Workload, kernel: Any) -> Benchmark:
        return Benchmark(kernel, ConfigSpace({}), Workers(1), Limits())

    with closing(BaseTree.at_merge_base(repository.root, "HEAD")) as tree:
        with closing(BaseSide(tree, chosen, options)) as side:
            found = side.find("test_it.py", "good", "test_it.py::test_good", [])
        assert isinstance(found, Counterpart)
        assert (found.best, found.best_source) == (ONE, "default")
        with closing(Bases(chosen, History(lambda: tree, options), opened)) as bases:
            baseline = stored(TWO, found.fingerprint[:SOURCE_DIGITS], commit[:12])
            file = repository.root / "baselines.json"
            base = bases.of_baseline(WORKLOAD, ONE, baseline, file)
            assert base is not None
            assert (base.config, base.is_tuned) == (TWO, True)
            gone = bases.of_baseline(WORKLOAD, ONE, replace(baseline, config={"block": 3}), file)
            assert gone is not None
            assert (gone.config, gone.is_tuned) == (ONE, False)
            assert bases.of_baseline(WORKLOAD, ONE, replace(baseline, source="another"), file) is None
        with closing(Bases(settings(repository.root), History(lambda: tree, options), opened)) as bases:
            as_shipped = bases.of_baseline(WORKLOAD, ONE, replace(baseline, config={"block": 3}), file)
            assert as_shipped is not None
            assert as_shipped.is_tuned  # beside a config that was not searched for, either
