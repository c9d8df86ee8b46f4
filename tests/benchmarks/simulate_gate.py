"""How often the gate is right: its verdicts over simulated kernels.

Run ``python -m tests.benchmarks.simulate_gate [--decisions=N] [--seed=N]`` in the repository's root; it takes about
ten seconds and prints one row for each kernel and true change, in percent of N decisions.

The model: the logarithm of a reading is the kernel's latency, an offset of its process (then and now are two
processes), the machine's speed in that process, a drift that all arms of a block share, and a block's own noise, of
which 4% are outliers (up to 30% slower). Offsets are as large as the gate assumes where the name says nothing else.
A true change of just the threshold is red about half of the time, by definition.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import product

from pytest_kerneltune.gate import Blocks, Policy, VerdictKind, judge, measured_baseline
from pytest_kerneltune.trial import Clock

POLICY = Policy()
CHANGES = (0.0, 0.015, 0.03, 0.045, 0.06, 0.10, 0.20, 0.30, 0.50)
COLUMNS = (VerdictKind.REGRESSED, VerdictKind.OK, VerdictKind.IMPROVED, VerdictKind.NOISY)


@dataclass(frozen=True)
class Machine:
    """A place to measure, by standard deviations of logarithms.

    ``offset`` and ``speed`` are those of the difference between two processes, the first of the kernel alone and the
    second of all arms; ``drift`` and ``noise`` are a block's.
    """

    name: str
    clock: Clock
    offset: float
    speed: float
    drift: float
    noise: float
    arms: tuple[tuple[str, float], ...]


_GPU = (("winner", 0.2), ("reference", 0.3))
_HOST = (("winner", 2.0), ("calibration", 1.0))
MACHINES = (
    Machine("GPU, 0.15% noise", "cuda", 0.005, 0.05, 0.03, 0.0015, _GPU),
    Machine("GPU, 1% noise", "cuda", 0.005, 0.05, 0.03, 0.01, _GPU),
    Machine("GPU, 3% noise", "cuda", 0.005, 0.05, 0.03, 0.03, _GPU),
    Machine("GPU, doubled, 0.15% noise", "cuda", 0.010, 0.05, 0.03, 0.0015, _GPU),
    Machine("GPU, 6 us, 4% offset", "cuda", 0.040, 0.05, 0.03, 0.01, (("winner", 0.006), ("reference", 0.006))),
    Machine("GPU without reference", "cuda", 0.005, 0.025, 0.01, 0.0015, _GPU[:1]),
    Machine("CPU time", "thread", 0.025, 0.0, 0.02, 0.03, _HOST),
    Machine("CPU time, 20% speed", "thread", 0.025, 0.20, 0.02, 0.03, _HOST),
    Machine("wall, 10% noise", "wall", 0.05, 0.0, 0.05, 0.10, _HOST),
    Machine("wall, 20% speed, 30% noise", "wall", 0.05, 0.20, 0.10, 0.30, _HOST),
)


def session(rng: random.Random, machine: Machine, change: float) -> Blocks:
    """One process's blocks; the kernel is slower by the fraction ``change``."""
    speed = rng.gauss(0, machine.speed / math.sqrt(2))
    offset = rng.gauss(0, machine.offset / math.sqrt(2)) + math.log1p(change)
    drifts = [speed + rng.gauss(0, machine.drift) for _ in range(POLICY.looks[-1])]
    return {
        arm: [latency * math.exp(drift + offset * (arm == "winner") + block_noise(rng, machine)) for drift in drifts]
        for arm, latency in machine.arms
    }


def block_noise(rng: random.Random, machine: Machine) -> float:
    outlier = rng.uniform(0, 0.3) if rng.random() < 0.04 else 0.0
    return rng.gauss(0, machine.noise) + outlier


def decision(rng: random.Random, machine: Machine, change: float) -> tuple[VerdictKind, int]:
    """The verdict of the sequential rule, and the number of blocks it took."""
    baseline = measured_baseline(session(rng, machine, 0.0), {}, {}, {})
    blocks = session(rng, machine, change)
    for look in POLICY.looks:
        seen = {arm: readings[:look] for arm, readings in blocks.items()}
        verdict = judge(seen, baseline, {}, machine.clock, POLICY, config={})
        if verdict.decided:
            break
    return verdict.kind, look


def row(machine: Machine, change: float, decisions: int, seed: int) -> str:
    rng = random.Random(f"{seed} {machine.name} {change}")
    results = [decision(rng, machine, change) for _ in range(decisions)]
    kinds = Counter(kind for kind, _ in results)
    shares = "".join(f"{100 * kinds[kind] / decisions:11.1f}" for kind in COLUMNS)
    blocks = sum(look for _, look in results) / decisions
    return f"{machine.name:<28}{change:7.1%}{shares}{blocks:9.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Verdicts of the gate over simulated kernels.")
    parser.add_argument("--decisions", type=int, default=300, help="decisions for each row")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    header = "".join(f"{kind:>11}" for kind in COLUMNS)
    sys.stdout.write(f"{'machine':<28}{'change':>7}{header}{'blocks':>9}\n")
    for machine, change in product(MACHINES, CHANGES):
        sys.stdout.write(row(machine, change, options.decisions, options.seed) + "\n")


if __name__ == "__main__":
    main()
