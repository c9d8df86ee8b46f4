"""How often the gate is right: its verdicts over simulated kernels.

Run ``python -m tests.benchmarks.simulate_gate [--decisions=N] [--unchanged=N] [--seed=N]`` in the repository's root; it
takes about half a minute and prints one row for each case and true change, in percent of N decisions.

The model: the logarithm of a reading is the kernel's latency, an offset of its process, the machine's speed in that
process, a drift that all arms of a block share, and a block's own noise, of which 4% are outliers (up to 30% slower).
Two kernels beside each other share their process, and differ by where their code lies. A decision is the sequential
rule's at 16, 32 and 64 blocks; a regression must show once more in a fresh process, as it must in a run.
A true change of just the threshold is red about half of the time, by definition.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from pytest_kerneltune.gate import Baseline, Blocks, Policy, Verdict, VerdictKind, judge, judge_beside
from pytest_kerneltune.record import measured_session
from pytest_kerneltune.trial import Clock

POLICY = Policy()
LOOKS = POLICY.looks
COLUMNS = (VerdictKind.REGRESSED, VerdictKind.OK, VerdictKind.IMPROVED, VerdictKind.NOISY)
_OUTLIERS, _SLOWEST_OUTLIER = 0.04, 0.3


@dataclass(frozen=True)
class Machine:
    """A place to measure, by standard deviations of logarithms.

    ``offset`` and ``speed`` are those of a process, the first of the kernel alone and the second of all arms;
    ``placement`` that of two kernels of equal code in one process; ``drift`` and ``noise`` are a block's, and
    ``memory`` is the correlation of a block's noise with the one before.
    """

    name: str
    clock: Clock
    arms: tuple[tuple[str, float], ...]
    noise: float
    offset: float = 0.005
    speed: float = 0.035
    drift: float = 0.03
    placement: float = 0.0015
    memory: float = 0.0


@dataclass(frozen=True)
class Case:
    """A comparison, with the true changes to simulate; ``sessions`` of a baseline (0: beside the base's kernel).

    ``reference`` is the change of the reference since the baseline.
    """

    machine: Machine
    changes: tuple[float, ...]
    sessions: int = 0
    threshold: float = 0.03
    reference: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.machine.name}, {f'{self.sessions} stored' if self.sessions else 'beside'}"


_STORED_GPU = (("winner", 0.2), ("reference", 0.3), ("copy", 0.1), ("arithmetic", 0.1))
_SHORT = (("winner", 0.006), ("reference", 0.006))
_HOST = (("winner", 2.0), ("calibration", 1.0))


def _pair(latency_ms: float) -> tuple[tuple[str, float], ...]:
    return (("winner", latency_ms), ("base", latency_ms))


SENSITIVE = (0.0, 0.015, 0.02, 0.03)
USUAL = (0.0, 0.03, 0.045, 0.05, 0.10)
COARSE = (0.0, 0.15, 0.25, 0.40, 1.00)
QUIET = Machine("GPU 0.2 ms, 0.15% noise", "cuda", _pair(0.2), 0.0015)
NOISY = Machine("GPU 0.2 ms, 0.5% noise", "cuda", _pair(0.2), 0.005)
STEADY = Machine("GPU, 0.3% offset", "cuda", _STORED_GPU, 0.002, offset=0.003)
MOVED = Machine("GPU, 1.2% offset", "cuda", _STORED_GPU, 0.002, offset=0.012)
CPU = Machine("CPU time, 20% speed", "thread", _HOST, 0.03, offset=0.025, speed=0.14, drift=0.02, placement=0.015)
WALL = Machine("wall, 20% speed", "wall", _HOST, 0.10, offset=0.05, speed=0.14, drift=0.05, placement=0.02)
CASES = (
    Case(QUIET, SENSITIVE, threshold=0.015),
    Case(NOISY, SENSITIVE, threshold=0.015),
    Case(QUIET, USUAL),
    Case(NOISY, USUAL),
    Case(replace(NOISY, name="GPU 0.2 ms, 0.5%, correlated", memory=0.6), SENSITIVE, threshold=0.015),
    Case(Machine("GPU 20 us, 0.5% noise", "cuda", _pair(0.02), 0.005), SENSITIVE, threshold=0.015),
    Case(Machine("GPU 5 us, 0.5% noise", "cuda", _pair(0.005), 0.005), USUAL),
    Case(Machine("GPU 6 us, 1.3% noise", "cuda", _pair(0.006), 0.013), USUAL),
    Case(replace(CPU, arms=_pair(2.0)), COARSE, threshold=0.25),
    Case(replace(WALL, arms=_pair(2.0)), COARSE, threshold=0.25),
    *(Case(machine, USUAL, sessions) for machine in (STEADY, MOVED) for sessions in (1, 3, 5, 8)),
    Case(replace(STEADY, name="GPU, reference 12% faster"), USUAL, 3, reference=-0.12),
    Case(Machine("GPU 6 us, 2.5% offset", "cuda", _SHORT, 0.01, offset=0.025), USUAL, 3),
    Case(Machine("GPU without yardsticks", "cuda", _SHORT[:1], 0.0015, speed=0.018, drift=0.01), COARSE, 3),
    Case(CPU, COARSE, 1, threshold=0.25),
    Case(WALL, COARSE, 1, threshold=0.25),
)


def session(rng: random.Random, case: Case, change: float, today: bool) -> Iterator[Blocks]:
    """The readings of one process, up to each look; the kernel is slower by the fraction ``change``."""
    machine = case.machine
    speed = rng.gauss(0, machine.speed)
    offset = rng.gauss(0, machine.offset if case.sessions else machine.placement) + math.log1p(change)
    moved = {"winner": offset, "reference": math.log1p(case.reference) if today else 0.0}
    noises = {arm: 0.0 for arm, _ in machine.arms}
    blocks: dict[str, list[float]] = {arm: [] for arm in noises}
    for look in LOOKS:
        while len(blocks["winner"]) < look:
            shared = speed + rng.gauss(0, machine.drift)
            for arm, latency in machine.arms:
                fresh = math.sqrt(1 - machine.memory**2) * rng.gauss(0, machine.noise)
                noises[arm] = machine.memory * noises[arm] + fresh
                logs = shared + moved.get(arm, 0.0) + noises[arm] + outlier(rng)
                blocks[arm].append(latency * math.exp(logs))
        yield blocks


def outlier(rng: random.Random) -> float:
    return rng.uniform(0, _SLOWEST_OUTLIER) if rng.random() < _OUTLIERS else 0.0


def stored(rng: random.Random, case: Case) -> Baseline:
    """A baseline of as many sessions as the case says, each of as many blocks as it usually has."""
    sessions = (measured_session(next(session(rng, case, 0.0, False)), {}, {}) for _ in range(case.sessions))
    return Baseline({}, {}, tuple(sessions))


def judged_by(rng: random.Random, case: Case) -> Callable[[Blocks], Verdict]:
    """How today's blocks are judged."""
    clock, policy = case.machine.clock, replace(POLICY, threshold=case.threshold)
    if not case.sessions:
        return lambda blocks: judge_beside(blocks, clock, policy, config={}, base_config={})
    baseline = stored(rng, case)
    return lambda blocks: judge(blocks, baseline, {}, clock, policy, config={})


def decision(rng: random.Random, case: Case, change: float) -> tuple[VerdictKind, int]:
    """The verdict, and the number of blocks of the first measurement; what isn't confirmed is noisy."""
    judged = judged_by(rng, case)
    first = measured(judged, session(rng, case, change, True))
    if first[0] is not VerdictKind.REGRESSED:
        return first
    again, _ = measured(judged, session(rng, case, change, True))
    return (again if again is VerdictKind.REGRESSED else VerdictKind.NOISY), first[1]


def measured(judged: Callable[[Blocks], Verdict], looks: Iterator[Blocks]) -> tuple[VerdictKind, int]:
    """The verdict of one measurement and its number of blocks."""
    verdicts = ((judged(blocks), len(blocks["winner"])) for blocks in looks)
    return next((verdict.kind, count) for verdict, count in verdicts if verdict.decided)


def row(case: Case, change: float, decisions: int, seed: int) -> str:
    rng = random.Random(f"{seed} {case} {change}")
    results = [decision(rng, case, change) for _ in range(decisions)]
    kinds = Counter(kind for kind, _ in results)
    shares = "".join(f"{100 * kinds[kind] / decisions:11.2f}" for kind in COLUMNS)
    blocks = sum(look for _, look in results) / decisions
    return f"{case.name:<42}{case.threshold:10.1%}{change:8.1%}{shares}{blocks:8.1f}{decisions:10}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Verdicts of the gate over simulated kernels.")
    parser.add_argument("--decisions", type=int, default=300, help="decisions for each row")
    parser.add_argument("--unchanged", type=int, default=1000, help="the same for unchanged kernels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    header = "".join(f"{kind:>11}" for kind in COLUMNS)
    sys.stdout.write(f"{'case':<42}{'threshold':>10}{'change':>8}{header}{'blocks':>8}{'decisions':>10}\n")
    for case, change in chain.from_iterable(((case, change) for change in case.changes) for case in CASES):
        count = options.decisions if change else options.unchanged
        sys.stdout.write(row(case, change, count, options.seed) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
