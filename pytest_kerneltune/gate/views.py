"""Ways to compare today's readings with stored ones: the latency alone, and its ratio to each yardstick."""

# Rule 1, then and now. A stored session comes from another process: placement, clocks and libraries differ, and no
# number of blocks averages that away. The logarithms y of the K sessions' readings scatter with the same deviation s as
# today's, so today's differs from their mean by s * sqrt(1 + 1/K). Few sessions tell little about s: it is pooled with
# what is known beforehand (policy.ClockError), and the interval takes Student's t with the degrees of freedom of both:
# a baseline of one session is judged by the prior alone, with wide limits, and one of eight mostly by itself. What the
# sessions' blocks leave open comes on top, and so does what today's blocks do: their interval from order statistics,
# which holds whatever their distribution, is widened in quadrature.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from pytest_kerneltune.gate.policy import ClockError, Policy
from pytest_kerneltune.record import YARDSTICKS, Baseline, Blocks, StoredSession
from pytest_kerneltune.statistics import (
    Interval,
    log_ratios,
    median_error,
    median_interval,
    pooled_deviation,
    student_quantile,
)
from pytest_kerneltune.trial import Clock

FROZEN = ("copy", "arithmetic")
"""Yardsticks on a GPU that never change; "calibration" is that of host clocks."""


@dataclass(frozen=True)
class View:
    """One way to compare: the latency ("" as ``yardstick``), or its ratio to a yardstick.

    ``then`` is the mean of the ``sessions`` stored logarithms; ``error`` the standard deviation by which an unchanged
    kernel differs from it today, and ``limit`` how far it may: as many deviations as the policy says.
    """

    yardstick: str
    then: float
    error: float
    limit: float
    sessions: int

    @property
    def name(self) -> str:
        return f"ratio to the {self.yardstick}" if self.yardstick else "latency"


def stored_views(
    blocks: Blocks, baseline: Baseline, clock: Clock, policy: Policy, surroundings_changed: bool = False
) -> list[View]:
    """The views that ``blocks`` and at least one stored session have, the latency's last.

    Changed surroundings (driver, versions) count as one more draw of what differs between processes.
    """
    found = []
    for name in (*(y for y in YARDSTICKS if y in blocks), ""):
        sessions = [session for session in baseline.sessions if not name or name in session.ratios]
        if sessions:
            found.append(_view(name, sessions, policy.clocks[clock], policy.widening, surroundings_changed))
    return found


def _view(
    name: str, sessions: Sequence[StoredSession], known: ClockError, widening: float, surroundings_changed: bool
) -> View:
    count = len(sessions)
    logs = [math.log(session.ratios[name] if name else session.latency_ms) for session in sessions]
    spread, degrees = pooled_deviation(logs, _known_deviation(name, sessions, known), known.degrees)
    left_open = math.hypot(*(median_error(session.noise, session.blocks) for session in sessions)) / count
    error = math.hypot(spread * math.sqrt(1 + 1 / count + surroundings_changed), left_open)
    return View(name, fmean(logs), error, student_quantile(NormalDist().cdf(widening), degrees) * error, count)


def _known_deviation(name: str, sessions: Sequence[StoredSession], known: ClockError) -> float:
    """What one process's reading differs by, as known without the sessions."""
    own = known.overhead_ms / fmean(session.latency_ms for session in sessions)
    if not name:
        return math.hypot(known.alone, own)
    other = known.overhead_ms / fmean(session.yardsticks[name] for session in sessions)
    return math.hypot(known.ratio if name == "reference" else known.frozen, own, other)


def change_since(blocks: Blocks, arm: str, view: View, policy: Policy) -> Interval:
    """The change of ``arm`` today against the stored sessions, with its widened interval (Rule 1)."""
    divisors = blocks[view.yardstick] if view.yardstick else [1.0] * len(blocks[arm])
    return change_between(log_ratios(blocks[arm], divisors), policy, view.then, view.limit)


def change_between(logs: Sequence[float], policy: Policy, then: float = 0.0, limit: float = 0.0) -> Interval:
    """The change that the median of log ratios is from ``then``; the interval is widened by ``limit`` in quadrature."""
    now = median_interval(logs, policy.confidence)
    change = now.estimate - then
    below, above = math.hypot(now.estimate - now.low, limit), math.hypot(now.high - now.estimate, limit)
    return Interval(math.expm1(change), math.expm1(change - below), math.expm1(change + above))


def changes_since(blocks: Blocks, arm: str, views: Sequence[View], policy: Policy) -> Mapping[View, Interval]:
    """``change_since`` for each view."""
    return {view: change_since(blocks, arm, view, policy) for view in views}
