"""The gate's rules in numbers: what an unchanged kernel's readings differ by, and what a verdict allows."""

# ClockError rests on these measurements. Deviations are those of one process, so two differ by 1.4 times as much.
#   cuda, ratio    0.6%: between two processes on an H200, ratios to a reference moved by less than 0.5% (matmul), 0.1
#                  to 0.3% (attention, cross entropy), 0.9 to 1.9% (layer_norm) and 0.1 to 3% (softmax), and by 4% for
#                  one of 6 us, of which 0.07 us of each arm say 2.4%. How far depends on the kernel (where its tensors
#                  lie in memory), which is why 0.6% counts as no more than four degrees of freedom.
#   cuda, frozen   1.2%: calibration kernels do other work than the kernel, so clocks and power move them less alike
#   cuda, alone    1.8%: one-sided times varied by 0.1 to 3.7%
#   cuda, beside   0.15%: in 504 comparisons of equal code on the same tensors of one process six kernels (6 us or more)
#                  differed by 0.31% at the most; over ten processes a softmax by 0.04% (0.34% on tensors of their own)
#   thread         1.8%: min-of-9 CPU times on a shared host varied by 2.9% over 20 configs: ten degrees of freedom
#   wall           3.6%: wall times vary several times as much, which the blocks show and the interval carries
#   host, beside   1.5% and 2%: code placement (alignment of loops) and the cache lines that a program happens to get
# least_ms: a change below 0.2 us (cuda) is under what launches of one kernel differ by in two processes, below 1 us
# (host) under what a call through Python does. No test fails for it, whatever it is in percent.

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pytest_kerneltune.trial import Clock


@dataclass(frozen=True)
class ClockError:
    """How far readings of an unchanged kernel differ, as standard deviations.

    From process to process: ``ratio`` is that of a latency over the kernel's own reference's, ``frozen`` over that of
    work of ours, ``alone`` that of a latency, all relative and of one process; ``overhead_ms`` is a part in ms that
    every latency has, and so every yardstick's. All of them count as if known from ``degrees`` degrees of freedom.
    Within a process: ``beside``, relative, of two kernels of equal code. ``least_ms`` is the change in ms below which
    no kernel is called slower.
    """

    ratio: float
    frozen: float
    alone: float
    overhead_ms: float
    degrees: int
    beside: float
    least_ms: float


def _clock_errors() -> Mapping[Clock, ClockError]:
    return {
        "cuda": ClockError(0.006, 0.012, 0.018, overhead_ms=0.00007, degrees=4, beside=0.0015, least_ms=0.0002),
        "thread": ClockError(0.018, 0.018, 0.018, overhead_ms=0.00018, degrees=10, beside=0.015, least_ms=0.001),
        "wall": ClockError(0.036, 0.036, 0.036, overhead_ms=0.00018, degrees=10, beside=0.02, least_ms=0.001),
    }


def _sessions() -> Mapping[Clock, int]:
    return {"cuda": 3, "thread": 3, "wall": 1}


@dataclass(frozen=True)
class Policy:
    """What the gate's rules leave open.

    ``threshold`` is the fraction of slowdown that fails; ``confidence`` that of the two-sided interval within one
    process; ``looks`` the numbers of blocks at which to judge, ascending; ``widening`` how many deviations of
    ``clocks`` the interval is widened by, as of a normal distribution (few sessions: Student's t at the same level);
    ``yardstick_drift`` the fraction by which the reference's own latency may move on the cuda clock without being
    mentioned, where there is no other yardstick to tell. ``sessions`` is the number of fresh processes in which a
    baseline is measured, and one of fewer than ``mature`` is called young.
    """

    threshold: float = 0.03
    confidence: float = 0.996
    looks: tuple[int, ...] = (16, 32, 64)
    widening: float = 2.0
    yardstick_drift: float = 0.25
    sessions: Mapping[Clock, int] = field(default_factory=_sessions)
    mature: int = 5
    clocks: Mapping[Clock, ClockError] = field(default_factory=_clock_errors)

    def apart(self, clock: Clock) -> Policy:
        """The policy for two kernels side by side on tensors of their own, whose places matter as in two processes."""
        known = self.clocks[clock]
        beside = math.hypot(known.beside, math.sqrt(2) * known.ratio)
        return replace(self, clocks={**self.clocks, clock: replace(known, beside=beside)})
