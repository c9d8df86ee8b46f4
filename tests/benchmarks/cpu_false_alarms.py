"""False alarms of whole runs on the CPU: ``python -m tests.benchmarks.cpu_false_alarms [--seconds S] [--runs R]``.

Configs of the C examples' kernels are measured in one fresh process after the other, for S seconds in all: each config
twice, and once slowed to twice its latency, in turn. What is unchanged and what is slowed is judged with a threshold of
25% beside itself, and against baselines of one, three and five other sessions of the same config. Then R runs of 50
unchanged kernels are resampled for each such size: each kernel's blocks are drawn anew, in chunks, from one of its
sessions; where that is red a further session decides, as a fresh process does for the gate.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from pytest_kerneltune.backends.c import CKernel
from pytest_kerneltune.backends.slowed import SlowedKernel
from pytest_kerneltune.backends.tagged import tagged
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.gate import Policy, Verdict, VerdictKind, judge, judge_beside
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.record import Baseline, Blocks, measured_session
from pytest_kerneltune.report import format as form
from pytest_kerneltune.report.selftest import share
from pytest_kerneltune.resampling import Pool
from pytest_kerneltune.selftest import slowed_arms
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

POLICY = Policy(threshold=0.25)
KERNELS_A_RUN = 50
STORED = (1, 3, 5)
_DRAWS = 10  # of baselines for each session
EXAMPLES = Path(__file__).parents[2] / "examples" / "kernels"
RED = VerdictKind.REGRESSED

Rule: TypeAlias = Callable[[Blocks], Verdict]
Sessions: TypeAlias = Sequence[Blocks]
"""One config's measurements, each from a process of its own."""


def kernels() -> Mapping[str, tuple[CKernel, Config]]:
    """Kernels of the examples, each with configs that differ in latency and in what they do to the caches."""
    a, b = np.random.default_rng(0).standard_normal((2, 128, 128), dtype=np.float32)
    c = np.empty_like(a)
    matmul = CKernel(EXAMPLES / "matmul.c", "matmul", (a, b, c, 128), output=c, reference=lambda: a @ b)
    image = np.random.default_rng(0).random((134, 134), dtype=np.float32)
    weights = np.full(7, 1 / 7, dtype=np.float32)
    blurred = np.empty((128, 128), dtype=np.float32)
    blur = CKernel(EXAMPLES / "blur.c", "blur", (image, weights, blurred, 128, 128), output=blurred)
    tiles = {"TILE_J": 64, "TILE_K": 32, "UNROLL": 4, "-O": 3}
    areas = {"TILE_Y": 16, "TILE_X": 64, "INNER": "PIXELS", "UNROLL": 4}
    return {
        "matmul ikj": (matmul, {"TILE_I": 32, **tiles, "ORDER": (0, 2, 1)}),
        "matmul ijk": (matmul, {"TILE_I": 32, **tiles, "ORDER": (0, 1, 2)}),
        "matmul kij": (matmul, {"TILE_I": 16, **tiles, "ORDER": (2, 0, 1)}),
        "blur direct": (blur, {**areas, "METHOD": "DIRECT"}),
        "blur separable": (blur, {**areas, "METHOD": "SEPARABLE"}),
        "blur taps": (blur, {**areas, "METHOD": "SEPARABLE", "INNER": "TAPS"}),
    }


def measured(seconds: float) -> dict[str, list[Blocks]]:
    """The sessions of each kernel, as many as there is time for."""
    workers = Workers(1)
    end = time.monotonic() + seconds
    found: dict[str, list[Blocks]] = {}
    slow: dict[str, Config] = {}
    try:
        made = {
            name: (Benchmark(SlowedKernel(kernel), ConfigSpace({}), workers, Limits()), config)
            for name, (kernel, config) in kernels().items()
        }
        while time.monotonic() < end:
            for name, (bench, config) in made.items():
                bench.restart()
                method = bench.start()
                if name not in slow:
                    slow[name] = slowed_arms(bench, config, method, (1.0,))[1.0]
                found.setdefault(name, []).append(_session(bench, method, config, slow[name]))
    finally:
        workers.close()
    return found


def _session(bench: Benchmark, method: str, config: Config, slow: Config) -> Blocks:
    plain = tagged(config, 0)
    return bench.compare({"winner": plain, "base": plain, "slow": slow}, True, POLICY.looks[-1], method)


def baseline_of(sessions: Sessions) -> Baseline:
    """What would be stored of ``sessions``: the first look of each."""
    first = [{arm: values[: POLICY.looks[0]] for arm, values in _plain(blocks).items()} for blocks in sessions]
    return Baseline({}, {}, tuple(measured_session(blocks, {}, {}) for blocks in first))


def against(baseline: Baseline) -> Rule:
    return lambda blocks: judge(blocks, baseline, {}, "thread", POLICY, config={})


def beside(blocks: Blocks) -> Verdict:
    return judge_beside(blocks, "thread", POLICY, config={}, base_config={})


def verdict_on(blocks: Blocks, rule: Rule) -> Verdict:
    """The verdict by ``rule`` at the first look that decides."""
    for look in POLICY.looks:
        verdict = rule({arm: values[:look] for arm, values in blocks.items()})
        if verdict.decided:
            break
    return verdict


def _plain(blocks: Blocks) -> Blocks:
    return {arm: values for arm, values in blocks.items() if arm not in ("base", "slow")}


def _slowed(blocks: Blocks) -> Blocks:
    return {**blocks, "winner": blocks["slow"]}


def drawn(sessions: Sessions, count: int, rng: random.Random) -> Iterator[tuple[Blocks, Baseline]]:
    """Each session with baselines of ``count`` others."""
    for i, now in enumerate(sessions):
        others = [*sessions[:i], *sessions[i + 1 :]]
        for _ in range(_DRAWS):
            yield now, baseline_of(rng.sample(others, count))


def run_of_many(found: Mapping[str, Sessions], count: int, rng: random.Random) -> tuple[int, int, int]:
    """Of a resampled run of KERNELS_A_RUN kernels: how many are red, red once more, and undecided."""
    kinds: Counter[VerdictKind] = Counter()
    confirmed = 0
    for _ in range(KERNELS_A_RUN):
        now, again, *then = rng.sample(rng.choice(list(found.values())), 2 + count)
        rule = against(baseline_of(then))
        kind = _redrawn(now, rule, rng)
        kinds[kind] += 1
        confirmed += kind is RED and _redrawn(again, rule, rng) is RED
    return kinds[RED], confirmed, kinds[VerdictKind.NOISY]


def _redrawn(now: Blocks, rule: Rule, rng: random.Random) -> VerdictKind:
    (kind,) = Pool([_plain(now)], lambda blocks, _: rule(blocks)).redrawn(1, POLICY, seed=rng.getrandbits(32))
    return kind


def live_lines(found: Mapping[str, Sessions]) -> Iterator[str]:
    """A line for each kind of decision."""
    every = [blocks for sessions in found.values() for blocks in sessions]
    yield f"beside itself, unchanged: {_tally([verdict_on(blocks, beside) for blocks in every])}"
    yield f"beside itself, twice: {_tally([verdict_on(_slowed(blocks), beside) for blocks in every])}"
    for count in _sizes(found):
        rng = random.Random(count)
        cases = [case for sessions in found.values() for case in drawn(sessions, count, rng)]
        for what, change in (("unchanged", _plain), ("twice", lambda blocks: _plain(_slowed(blocks)))):
            verdicts = [verdict_on(change(now), against(baseline)) for now, baseline in cases]
            yield f"against {form.count(count, 'session')}, {what}: {_tally(verdicts)}"


def _sizes(found: Mapping[str, Sessions]) -> list[int]:
    return [count for count in STORED if count + 2 <= min(map(len, found.values()))]


def _tally(verdicts: Sequence[Verdict]) -> str:
    red, noisy = (sum(v.kind is kind for v in verdicts) for kind in (RED, VerdictKind.NOISY))
    changes = [v.change.estimate for v in verdicts if v.change] or [0.0]
    return f"{red} of {len(verdicts)} red, {noisy} undecided, changes {min(changes):+.1%} to {max(changes):+.1%}"


def resampled_line(found: Mapping[str, Sessions], count: int, runs: int) -> str:
    rng = random.Random(count)
    results = [run_of_many(found, count, rng) for _ in range(runs)]
    red, confirmed = (sum(result[i] > 0 for result in results) for i in (0, 1))
    noisy = sum(result[2] for result in results) / (runs * KERNELS_A_RUN)
    what = f"runs of {KERNELS_A_RUN}, against {form.count(count, 'session')}, resampled"
    return f"{what}: alarms in {share(confirmed, runs)}, red at first in {red}; {noisy:.1%} of the kernels undecided"


def main() -> None:
    parser = argparse.ArgumentParser(description="False alarms of the gate on the CPU.")
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    before = os.getloadavg()[0]
    found = measured(options.seconds)
    count = min(map(len, found.values()))
    lines = [f"{len(found)} kernels, {count} sessions each; load {before:.1f} before, {os.getloadavg()[0]:.1f} after"]
    lines += [f"  {name}: {1e3 * min(sessions[0]['winner']):.1f} us" for name, sessions in found.items()]
    lines += live_lines(found)
    lines += [resampled_line(found, size, options.runs) for size in _sizes(found)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
