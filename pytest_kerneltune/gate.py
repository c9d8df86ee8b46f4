"""The gate: is a kernel slower than its baseline, by how much, and what is to blame. Pure functions of readings."""

# What the rules below rest on
# ----------------------------
# ln(latency) = kernel + device + session + drift + block. Drift is common to arms measured side by side, so block i of
# one arm is divided by block i of another. On an H200 a matmul's own time wandered by -5% to +12% within two seconds
# (power cap), its ratio to the reference by 0.1 to 0.2%. Within a session the median of the blocks' log ratios has an
# interval from order statistics, so outlier blocks and odd distributions do no harm.
#
# Rule 1, then and now. A stored baseline comes from another process: placement, clocks and libraries differ, and no
# number of blocks averages that away. ClockError holds the standard deviation of such a change of an unchanged kernel:
#   cuda, ratio   0.5% and 0.1 us of each arm: between two processes, ratios moved by 0.09, 0.1, 0.16, 0.3 and 0.9% for
#                 kernels of 38 to 193 us (0.4% root mean square) and by 4% for one of 6 us (0.5% and 0.1 us say 2.4%)
#   cuda, alone   2.5%: one-sided times varied by 0.1 to 3.7%
#   thread        2.5% and 0.25 us: min-of-9 CPU times on a shared host varied by 2.9% (median of 20 configs)
#   wall          5% and 0.25 us: wall times vary several times as much, which the blocks show and the interval carries
# The baseline's own standard error comes on top. A change's interval is the order-statistic one (99.6%), widened in
# quadrature by two of these deviations: at least 95% where they rule.
#
# Rule 2, decision at 16, 32 and 64 blocks (0.2% of error on each side a look, 0.6% over three looks):
#   regressed  estimate > threshold and low > threshold / 2     ok  high < threshold     improved  high < -threshold
# A change of just the threshold fails half of the time: that is what a threshold means.
#
# Rule 3, the threshold is the user's, but no less than four of Rule 1's deviations: there "low > threshold / 2" and
# "estimate > threshold" meet, an unchanged kernel is red once in 30,000 and ok in 98% of all cases. That gives 2% on
# cuda with a reference (10% at 6 us), 10% without one, 10% by thread time, 20% by wall time, and never less than a
# change of 0.4 us (cuda) or 1 us (host), whatever it is in percent. Today's noise does not raise the threshold: it
# widens the interval, so it asks for more blocks and ends as noisy, not as ok.
#
# Rule 4, host clocks. Speed differs between cores and neighbours and a yardstick follows only in part, so a regression
# must show in every view: the latency itself and its ratio to each yardstick. Where one view is red and another rules a
# regression out, the machine changed. At the last look one view that rules it out makes up for undecided ones. On cuda
# the view with the least deviation decides alone: the ratio to the reference, unless that is so short (under about
# 4 us) that dividing by it adds more noise than it removes. On host clocks such a yardstick is left out.

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from pytest_kerneltune.record import Baseline, Blocks, block_count, measured_baseline
from pytest_kerneltune.statistics import Interval, fewest_values, log_ratios, median_error, median_interval
from pytest_kerneltune.trial import Clock, Config

__all__ = [
    "Baseline",
    "Blocks",
    "ClockError",
    "Interval",
    "Policy",
    "Verdict",
    "VerdictKind",
    "format_ms",
    "judge",
    "measured_baseline",
    "regression_message",
]

_USEFUL = 1.5  # a yardstick whose ratio is this much less certain than the latency alone says nothing about it


class VerdictKind(StrEnum):
    """What a comparison with the baseline came to."""

    OK = "ok"
    REGRESSED = "regressed"
    IMPROVED = "improved"
    NEW = "new"
    INCOMPARABLE = "incomparable"
    NOISY = "noisy"
    INVALID = "invalid"


@dataclass(frozen=True)
class ClockError:
    """How far an unchanged kernel's reading differs from one in another process, as standard deviations.

    ``ratio`` is that of a latency over a yardstick's and ``alone`` that of a latency, both relative; ``overhead_ms``
    is a part in ms that every latency has, and so every yardstick's.
    """

    ratio: float
    alone: float
    overhead_ms: float


def _clock_errors() -> Mapping[Clock, ClockError]:
    return {
        "cuda": ClockError(ratio=0.005, alone=0.025, overhead_ms=0.0001),
        "thread": ClockError(ratio=0.025, alone=0.025, overhead_ms=0.00025),
        "wall": ClockError(ratio=0.05, alone=0.05, overhead_ms=0.00025),
    }


@dataclass(frozen=True)
class Policy:
    """The rules at the top of this module, in numbers.

    ``threshold`` is the fraction of slowdown that fails; ``confidence`` that of the two-sided interval within one
    session; ``looks`` the numbers of blocks at which to judge, ascending; ``widening`` how many deviations of
    ``clocks`` the interval is widened by; ``yardstick_drift`` the fraction by which the reference's own latency may
    move on the cuda clock without being mentioned.
    """

    threshold: float = 0.03
    confidence: float = 0.996
    looks: tuple[int, ...] = (16, 32, 64)
    widening: float = 2.0
    yardstick_drift: float = 0.25
    clocks: Mapping[Clock, ClockError] = field(default_factory=_clock_errors)


@dataclass(frozen=True)
class Verdict:
    """What :func:`judge` found.

    The changes are now against then: ``change`` of the winner against the stored baseline, ``code_change`` of the
    baseline's config run today against the stored baseline, ``search_change`` of the winner against the baseline's
    config, both run today; None where unknown. ``threshold`` is the one used; ``blame`` is "code", "search",
    "config gone", or "" unless regressed. ``decided`` is False where more blocks may decide.
    """

    kind: VerdictKind
    reason: str
    change: Interval | None = None
    code_change: Interval | None = None
    search_change: Interval | None = None
    threshold: float | None = None
    blame: str = ""
    decided: bool = True


@dataclass(frozen=True)
class _View:
    """One way to compare: the latency, or its ratio to a yardstick; ``then`` is stored, ``error`` by Rule 1."""

    yardstick: str
    then: float
    error: float

    @property
    def name(self) -> str:
        return f"ratio to the {self.yardstick}" if self.yardstick else "latency"


def judge(
    blocks: Blocks,
    baseline: Baseline | None,
    contract: Mapping[str, str],
    clock: Clock,
    policy: Policy,
    disturbed: Sequence[str] = (),
    *,
    config: Config,
) -> Verdict:
    """Compare a fresh measurement of the winner, whose config is ``config``, with the stored baseline.

    ``blocks`` holds the arm "winner", yardsticks where there are any, and as "baseline" the stored config run today,
    which is left out where it equals ``config`` or no longer runs. ``contract`` and ``clock`` are today's;
    ``disturbed`` says what disturbed the measurement, one phrase each. Raises ValueError where the arms are not equally
    long or a reading is not positive.
    """
    if disturbed:
        return Verdict(VerdictKind.INVALID, f"the measurement was disturbed: {'; '.join(disturbed)}")
    if baseline is None:
        return Verdict(VerdictKind.NEW, "there is no baseline yet")
    if differences := _differences(baseline.contract, contract):
        return Verdict(VerdictKind.INCOMPARABLE, f"the baseline was measured under other conditions: {differences}")
    count = block_count(blocks)
    if count < (fewest := fewest_values(policy.confidence)):
        return Verdict(VerdictKind.NOISY, f"{count} blocks are too few to judge: it takes {fewest}", decided=False)
    return _compared(blocks, baseline, clock, policy, config)


def _compared(blocks: Blocks, baseline: Baseline, clock: Clock, policy: Policy, config: Config) -> Verdict:
    views = _views(blocks, baseline, clock, policy)
    threshold = max(policy.threshold, 2 * policy.widening * max(view.error for view in views))
    changes = {view: _change(blocks, "winner", view, policy) for view in views}
    found = [_classified(change, threshold) for change in changes.values()]
    kind, decided = _combined(found, block_count(blocks) >= policy.looks[-1])
    view = min(changes, key=lambda v: abs(changes[v].estimate))  # of several, the one that claims least
    code, search, blame = _parts(blocks, baseline, view, policy, config)
    return Verdict(
        kind,
        "; ".join(
            (
                _outcome(kind, changes, found),
                _threshold_text(threshold, baseline, views, clock, policy),
                *_drift(blocks, baseline, clock, policy),
            )
        ),
        change=changes[view],
        code_change=code,
        search_change=search,
        threshold=threshold,
        blame=blame if kind is VerdictKind.REGRESSED else "",
        decided=decided,
    )


def _views(blocks: Blocks, baseline: Baseline, clock: Clock, policy: Policy) -> list[_View]:
    """The views that count (Rule 4). Only stored numbers choose them: how fast the machine is today must not."""
    error = policy.clocks[clock]
    stored = median_error(baseline.sessions[-1].noise, baseline.sessions[-1].blocks)
    own = error.overhead_ms / baseline.latency_ms
    alone = _View("", baseline.latency_ms, math.hypot(error.alone, own, stored))
    paired = [
        _View(name, ratio, math.hypot(error.ratio, own, error.overhead_ms / baseline.yardsticks[name], stored))
        for name, ratio in baseline.ratios.items()
        if name in blocks
    ]
    if clock == "cuda":
        return [min([*paired, alone], key=lambda view: view.error)]
    return [alone, *(view for view in paired if view.error <= _USEFUL * alone.error)]


def _change(blocks: Blocks, arm: str, view: _View, policy: Policy) -> Interval:
    """The change of ``arm`` today against the stored baseline, with its widened interval (Rule 1)."""
    divisors = blocks[view.yardstick] if view.yardstick else [1.0] * len(blocks[arm])
    now = median_interval(log_ratios(blocks[arm], divisors), policy.confidence)
    change = now.estimate - math.log(view.then)
    between = policy.widening * view.error
    below = math.hypot(now.estimate - now.low, between)
    above = math.hypot(now.high - now.estimate, between)
    return Interval(math.expm1(change), math.expm1(change - below), math.expm1(change + above))


def _classified(change: Interval, threshold: float) -> VerdictKind:
    """Rule 2; NOISY where nothing is certain yet."""
    if change.estimate > threshold and change.low > threshold / 2:
        return VerdictKind.REGRESSED
    if change.high < -threshold:
        return VerdictKind.IMPROVED
    return VerdictKind.OK if change.high < threshold else VerdictKind.NOISY


def _combined(found: Sequence[VerdictKind], last: bool) -> tuple[VerdictKind, bool]:
    """The verdict of all views, and whether it is final (Rule 4)."""
    kinds = set(found)
    if _contradictory(kinds):
        return VerdictKind.NOISY, True
    if VerdictKind.NOISY in kinds:
        ruled_out = last and kinds & {VerdictKind.OK, VerdictKind.IMPROVED}
        return (VerdictKind.OK, True) if ruled_out else (VerdictKind.NOISY, last)
    return (found[0] if len(kinds) == 1 else VerdictKind.OK), True


def _contradictory(kinds: Collection[VerdictKind]) -> bool:
    return VerdictKind.REGRESSED in kinds and not {VerdictKind.OK, VerdictKind.IMPROVED}.isdisjoint(kinds)


def _parts(
    blocks: Blocks, baseline: Baseline, view: _View, policy: Policy, config: Config
) -> tuple[Interval | None, Interval | None, str]:
    """The code's and the search's part in the change, and which is to blame for a regression."""
    if _token(config) == _token(baseline.config):
        return _change(blocks, "winner", view, policy), Interval(0.0, 0.0, 0.0), "code"
    if "baseline" not in blocks:
        return None, None, "config gone"
    code = _change(blocks, "baseline", view, policy)
    now = median_interval(log_ratios(blocks["winner"], blocks["baseline"]), policy.confidence)
    search = Interval(math.expm1(now.estimate), math.expm1(now.low), math.expm1(now.high))
    return code, search, "code" if code.estimate >= search.estimate else "search"


def _outcome(kind: VerdictKind, changes: Mapping[_View, Interval], found: Sequence[VerdictKind]) -> str:
    measured = ", ".join(f"{view.name} {change}" for view, change in changes.items())
    if _contradictory(found):
        return f"{measured} disagree: the machine's speed changed, so nothing is said about the kernel"
    return f"{_OUTCOMES[kind]}: {measured}"


_OUTCOMES = {
    VerdictKind.REGRESSED: "slower than the baseline",
    VerdictKind.IMPROVED: "faster than the baseline",
    VerdictKind.OK: "no slower than the baseline",
    VerdictKind.NOISY: "undecided within the noise",
}


def _threshold_text(threshold: float, baseline: Baseline, views: Sequence[_View], clock: Clock, policy: Policy) -> str:
    text = f"threshold {_percent(threshold)}"
    if threshold <= policy.threshold:
        return text
    wish = f"{text} instead of {_percent(policy.threshold)}, the finest that"
    if clock == "cuda" and not views[0].yardstick:
        return f"{wish} a GPU latency without a (long enough) reference beside it allows"
    return f"{wish} this baseline allows at {format_ms(baseline.latency_ms)} on the {clock} clock"


def _drift(blocks: Blocks, baseline: Baseline, clock: Clock, policy: Policy) -> list[str]:
    """A remark where the reference itself is no longer what it was; only a cuda clock is steady enough to tell."""
    if clock != "cuda" or "reference" not in blocks or "reference" not in baseline.yardsticks:
        return []
    then, now = baseline.yardsticks["reference"], median(blocks["reference"])
    if max(then / now, now / then) <= 1 + policy.yardstick_drift:
        return []
    return [f"the reference itself went from {format_ms(then)} to {format_ms(now)}: did it or its library change?"]


def regression_message(
    verdict: Verdict, baseline: Baseline, latency_ms: float, config: Config, name: str, accept_command: str
) -> str:
    """The text of a test that failed because ``name`` regressed to ``latency_ms`` with ``config``."""
    rows = [("why", verdict.reason), ("blame", _BLAMES[verdict.blame])]
    if verdict.code_change and _token(config) != _token(baseline.config):
        rows.append(("code", f"{verdict.code_change}  the baseline's config, now against then"))
        rows.append(("search", f"{verdict.search_change}  today's config against the baseline's, both now"))
    rows.append(("config", _config_text(baseline.config, config)))
    if baseline.recorded:
        rows.append(("baseline", ", ".join(f"{key} {value}" for key, value in baseline.recorded.items())))
    rows.append(("accept", accept_command))
    head = f"{name} REGRESSED {verdict.change}: {format_ms(baseline.latency_ms)} -> {format_ms(latency_ms)}"
    return "\n".join([head, *(f"  {label:<8}  {text}" for label, text in rows)])


_BLAMES = {
    "code": "code: the baseline's config itself is slower than it was (kernel, compiler or driver)",
    "search": "search: it chose a config that is slower than the baseline's",
    "config gone": "config gone: the baseline's config no longer runs, and the best one found is slower",
}


def format_ms(latency_ms: float) -> str:
    """A latency for people: "6.104 us", "1.2 ms"."""
    for limit, factor, unit in ((1e-3, 1e6, "ns"), (1.0, 1e3, "us"), (1e3, 1.0, "ms")):
        if latency_ms < limit:
            return f"{latency_ms * factor:.4g} {unit}"
    return f"{latency_ms / 1e3:.4g} s"


def _config_text(old: Config, new: Config) -> str:
    """Both configs in one line, what changed as ``name=before -> after``."""
    before = {key: json.dumps(value) for key, value in old.items()}
    after = {key: json.dumps(value) for key, value in new.items()}
    pairs = {key: (before.get(key, "absent"), after.get(key, "absent")) for key in {**after, **before}}
    text = ", ".join(f"{key}={a}" if a == b else f"{key}={a} -> {b}" for key, (a, b) in pairs.items())
    return text if before != after else f"unchanged: {text}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g}%"


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    keys = sorted(key for key in {**old, **new} if old.get(key) != new.get(key))
    return "; ".join(f"{key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}" for key in keys)


def _token(config: Config) -> str:
    """Equality as JSON sees it, so that a stored list equals the tuple it was."""
    return json.dumps(config, sort_keys=True)
