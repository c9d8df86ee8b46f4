"""The gate tried live: ``python -m tests.benchmarks.gate_trials [--sessions S] [--each N] [--kernels NAME ...]``.

In S fresh worker processes, N decisions of each kind are made on each kernel: unchanged, and slowed by 2, 3, 5 and 10%
of work of its own (more programs, or more steps; by how much a kernel is slower in truth is measured). Two modes:

  beside    two versions of the kernel in one process, on the same tensors, as with --against: one slowed, one not
  stored N  the slowed one against a baseline of N sessions, which were measured in other processes before

Unchanged kernels and those slowed by 2 and 3% are judged by a threshold of 1.5%, unchanged ones and those slowed by 5
and 10% by one of 3% (or all by --threshold). A red decision on an unchanged kernel is made once more in a fresh
process, as the gate does: "confirmed" counts those that are red again. Prints a table in Markdown. Needs a CUDA GPU,
but for --kernels c_loop.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, TypeAlias

from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.backends.pair import BASE, PairKernel
from pytest_kerneltune.backends.tagged import tagged
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.gate import Policy, Verdict, VerdictKind, alternation_disturbance, judge, judge_beside
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.record import Baseline, Blocks, StoredSession, measured_session
from pytest_kerneltune.selftest_summary import change_between
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config
from tests.benchmarks.trial_table import Key, Row, cells, table

CASES = ((0.0, 0.015), (0.02, 0.015), (0.03, 0.015), (0.0, 0.03), (0.05, 0.03), (0.10, 0.03))
"""Slowdown and threshold."""

STORED = (1, 3, 5)
KERNELS = ("softmax", "layer_norm", "matmul", "add", "short_softmax", "medium_softmax")
Rule: TypeAlias = Callable[[Blocks], Verdict]


class Trial:
    """One kernel in one mode: a benchmark, the arms of each slowdown, and the rules that judge."""

    def __init__(self, name: str, kernel: Kernel, config: Callable[[float], Config], how: Conditions) -> None:
        self.name, self.how, self._config = name, how, config
        self.rows: dict[Key, Row] = {}
        self.bench = Benchmark(self._kernel(kernel), ConfigSpace({}), how.workers, Limits())
        self.bench.start()
        self.method = self.bench.method(config(0.0))
        self.configs, self.measured = {0.0: config(0.0)}, {0.0: [0.0]}
        for fraction in sorted({fraction for fraction, _ in how.cases} - {0.0}):
            self.configs[fraction], measured = self._slowed(fraction)
            self.measured[fraction] = [measured]
        self.compare(self.configs[0.0], 1)  # compiles what is not compiled yet

    def _kernel(self, kernel: Kernel) -> Kernel:
        return kernel

    def arms(self, config: Config) -> dict[str, Config]:
        return {"winner": config}

    yardsticks = True

    def rules(self, threshold: float) -> Mapping[str, Rule]:
        raise NotImplementedError

    def prepare(self) -> None:
        """What must be measured before the first session."""

    def session(self, until: float) -> None:
        """A fresh process, and its decisions as far as there is time (monotonic s)."""
        self.bench.restart()
        self.bench.start()
        self.compare(self.configs[0.0], 1)  # loads what a process loads once
        for turn in range(self.how.each):
            wanted = list(self.configs)
            for fraction in wanted[turn % len(wanted) :] + wanted[: turn % len(wanted)]:
                if time.monotonic() < until:
                    self._decide(fraction)

    def cells(self) -> list[list[str]]:
        """Its rows of the table."""
        return [cells(self.name, key, row, self.measured[key[1]]) for key, row in sorted(self.rows.items())]

    def _decide(self, fraction: float) -> None:
        keys = self._rules_of(fraction)
        verdicts, blocks = self.decided(fraction, {key: rule for key, (rule, _) in keys.items()})
        if "base" in blocks:
            self.measured[fraction].append(change_between(blocks, "winner", "base"))
        for key, (verdict, seconds) in verdicts.items():
            row = self.rows.setdefault(key, Row())
            row.add(verdict, seconds)
            if not fraction and verdict.kind is VerdictKind.REGRESSED:
                self.bench.restart()
                again, _ = self.decided(fraction, {key: keys[key][0]})
                row.confirmed += again[key][0].kind is VerdictKind.REGRESSED

    def _rules_of(self, fraction: float) -> dict[Key, tuple[Rule, float]]:
        thresholds = [threshold for wanted, threshold in self.how.cases if wanted == fraction]
        return {(mode, fraction, t): (rule, t) for t in thresholds for mode, rule in self.rules(t).items()}

    def decided(self, fraction: float, rules: Mapping[Key, Rule]) -> tuple[dict[Key, tuple[Verdict, float]], Blocks]:
        """The verdict by each rule, with the seconds after which it was there, and all blocks that were read."""
        blocks: dict[str, list[float]] = {}
        found: dict[Key, tuple[Verdict, float]] = {}
        began = time.monotonic()
        for look in Policy().looks:
            with self.how.watch() as watch:
                fresh = self.compare(self.configs[fraction], look - len(blocks.get("winner", ())))
            disturbed = watch.disturbances() if watch else ()
            blocks = {arm: [*blocks.get(arm, ()), *values] for arm, values in fresh.items()}
            for key, rule in rules.items():
                if key not in found or not found[key][0].decided:
                    signs = [*disturbed, *self._signs(fresh, key[2])]
                    found[key] = (_invalid(signs) if signs else rule(blocks), time.monotonic() - began)
            if all(verdict.decided for verdict, _ in found.values()):
                break
        return found, blocks

    def _signs(self, fresh: Blocks, threshold: float) -> list[str]:
        """What the gate takes for a disturbance in the readings themselves."""
        sign = alternation_disturbance(fresh, threshold) if self.bench.kernel.clock == "cuda" else None
        return [sign] if sign else []

    def compare(self, config: Config, blocks: int) -> dict[str, list[float]]:
        return self.bench.compare(self.arms(config), self.yardsticks, blocks, self.method)

    def _slowed(self, fraction: float) -> tuple[Config, float]:
        """The config whose work makes the kernel slower by about ``fraction``, found by trying, and by how much."""
        more = fraction
        for _ in range(4):
            config = self._config(more)
            arms = {"winner": config, "plain": self._config(0.0)}
            measured = change_between(self.bench.compare(arms, False, 16, self.method), "winner", "plain")
            if abs(measured - fraction) < 0.1 * fraction:
                break
            more *= min(3.0, max(0.4, fraction / max(measured, fraction / 10)))
        return config, measured


class Beside(Trial):
    """Both versions in one process."""

    yardsticks = False

    def _kernel(self, kernel: Kernel) -> Kernel:
        return PairKernel(kernel, kernel)

    def arms(self, config: Config) -> dict[str, Config]:
        return {"winner": config, "base": tagged(self.configs[0.0], BASE)}

    def rules(self, threshold: float) -> Mapping[str, Rule]:
        def rule(blocks: Blocks) -> Verdict:
            return judge_beside(blocks, self.bench.kernel.clock, Policy(threshold=threshold), config={}, base_config={})

        return {"beside": rule}


class Stored(Trial):
    """Against baselines of several sessions."""

    def prepare(self) -> None:
        sessions: list[StoredSession] = []
        for _ in range(max(STORED)):
            self.bench.restart()
            blocks = self.compare(self.configs[0.0], Policy().looks[0])
            sessions.append(measured_session(blocks, {}, {}))
        self.baselines = {count: Baseline({}, {}, tuple(sessions[:count])) for count in STORED}

    def rules(self, threshold: float) -> Mapping[str, Rule]:
        def rule(baseline: Baseline, blocks: Blocks) -> Verdict:
            return judge(blocks, baseline, {}, self.bench.kernel.clock, Policy(threshold=threshold), config={})

        return {f"stored {count}": partial(rule, baseline) for count, baseline in self.baselines.items()}


MODES: Mapping[str, type[Trial]] = {"beside": Beside, "stored": Stored}


@dataclass(frozen=True)
class Conditions:
    """What all trials share."""

    workers: Workers
    each: int
    cases: Sequence[tuple[float, float]]
    watch: Callable[[], AbstractContextManager[Any]]


def subject(name: str) -> tuple[Kernel, Callable[[float], Config]]:
    """A kernel by name, and its config with a fraction of work more."""
    if name == "c_loop":
        return _c_loop()
    from tests.benchmarks.trial_kernels import SUBJECTS

    made = SUBJECTS[name]()
    return made.kernel, made.config


def _c_loop() -> tuple[Kernel, Callable[[float], Config]]:
    import numpy as np

    from pytest_kerneltune.backends.c import CKernel

    x = np.ones(50_000, dtype=np.float32)
    y = np.empty_like(x)
    source = "void f(float *x, float *y, long n) { for (long i = 0; i < n + MORE; i++) y[i % n] = 2 * x[i % n]; }"
    kernel = CKernel(source, "f", args=(x, y, x.size), output=y, reference=lambda: 2 * x)
    return kernel, lambda more: {"MORE": round(more * x.size)}


def _invalid(disturbed: Sequence[str]) -> Verdict:
    return Verdict(VerdictKind.INVALID, "; ".join(disturbed))


def _watch(is_wanted: bool) -> Callable[[], AbstractContextManager[Any]]:
    if not is_wanted:
        return nullcontext
    from pytest_kerneltune.gpu import cuda_device
    from pytest_kerneltune.guard.gpu_watch import GpuWatch

    return partial(GpuWatch, cuda_device().uuid)


def run(trials: Sequence[Trial], sessions: int, until: float) -> None:
    """All sessions of all trials; what would begin late is left out."""
    for number in range(sessions):
        for trial in trials:
            if time.monotonic() < until:
                trial.session(until)
                _say(trial, f"session {number + 1} of {sessions} done", until)


def _say(trial: Trial, what: str, until: float) -> None:
    print(f"# {trial.name}: {what}, {until - time.monotonic():.0f} s left", file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description="The gate's decisions on unchanged and slowed kernels.")
    add = parser.add_argument
    add("--sessions", type=int, default=3, help="fresh worker processes")
    add("--each", type=int, default=20, help="decisions of each kind in each of them")
    add("--kernels", nargs="+", default=KERNELS)
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--threshold", type=float, help="percent, for all (default: 1.5 and 3)")
    add("--unchanged", action="store_true", help="unchanged kernels only")
    add("--seconds", type=float, default=480, help="stop after so long")
    add("--no-watch", action="store_true", help="do not look at the GPU's clocks and processes meanwhile")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    cases = [(f, t) for f, t in CASES if not (options.unchanged and f)]
    if options.threshold is not None:
        cases = [(f, options.threshold / 100) for f in sorted({f for f, _ in cases})]
    workers = Workers(4)
    watch = _watch(not options.no_watch and "c_loop" not in options.kernels)
    conditions = Conditions(workers, options.each, cases, watch)
    try:
        made = {name: subject(name) for name in options.kernels}
        trials = []
        for mode, name in product(options.modes, made):
            trials.append(MODES[mode](name, *made[name], conditions))
            trials[-1].prepare()
            _say(trials[-1], f"{mode}, ready", until)
        run(trials, options.sessions, until)
        print(table([row for trial in trials for row in trial.cells()]))  # noqa: T201
    finally:
        workers.close()


if __name__ == "__main__":
    main()
