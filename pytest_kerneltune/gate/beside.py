"""The verdict on a kernel that was measured beside the base commit's, in one process and on the same tensors."""

# What differs between processes is not in these readings, so two things are left: today's blocks, whose interval comes
# from order statistics, and where the two compiled kernels happen to lie (policy.ClockError.beside), by which the
# interval is widened. The rule is Rule 2 of decision.py, and the threshold the user's, but no less than four of those
# deviations (0.6% on a GPU, 6 to 8% on a host) and no less than the change in ms that counts at all.
#
# Both sides get their best: a kernel got slower if today's code with today's config is slower than the base's code with
# the better of its own config and today's. The base's own config is doubted only where the other is faster beyond its
# interval: the better of two noisy medians would be too fast.
#
# By simulation (tests/benchmarks/simulate_gate.py; blocks' ratios scatter by 0.2 to 0.7%, 4% of readings are outliers):
# none of 30,000 unchanged kernels was red, and fewer than 0.01% were undecided; a threshold of 1.5% finds 2% in 99% and
# 3% in all cases, one of 3% finds 4.5% in all. A true change of just the threshold is red in about a third of all
# cases: half of the time in a first measurement, but it must show in a second one, too. Correlated blocks (0.6 from one
# to the next) made none of 30,000 red, either, and 2% were still found in 98%: the estimate must exceed the whole
# threshold and not only what is certain, so a bootstrap of runs of blocks would add nothing to order statistics.
#
# Orders: a block measures its arms in some order, and the next one the other way round (timing.block_order). Where a
# ratio depends on the order, the GPU's speed changes within a block, faster than the alternation follows. It can do so
# where arms are measured one after the other: in batches, and where inputs are restored. Arms that change places after
# each launch (EventTimer.alternate) share what happens within a block, so there the sign stays silent.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from pytest_kerneltune.gate.decision import Verdict, VerdictKind, classified, disturbed_verdict, too_few_verdict
from pytest_kerneltune.gate.policy import Policy
from pytest_kerneltune.gate.views import change_between
from pytest_kerneltune.gate.wording import percent, token, too_small
from pytest_kerneltune.record import Blocks, block_count
from pytest_kerneltune.statistics import Interval, log_ratios, median_error, robust_deviation
from pytest_kerneltune.timing import block_order
from pytest_kerneltune.trial import Clock, Config

_BASES = ("base", "base at winner")
_TODAYS = ("winner", "baseline", "pick")
_SAME_CONFIG = (("baseline", "base"), ("pick", "base at winner"), ("winner", "base at winner"))
_CERTAIN = 4.0  # errors by which two orders must differ before their difference means anything
UNCHANGED = Interval(0.0, 0.0, 0.0)


def judge_beside(
    blocks: Blocks,
    clock: Clock,
    policy: Policy,
    disturbed: Sequence[str] = (),
    *,
    config: Config,
    base_config: Config,
    same_code: bool = False,
    commit: str = "",
    pick: Config | None = None,
) -> Verdict:
    """Compare today's kernel with the base commit's, both measured in turn in one process.

    ``blocks`` holds "winner" (today's code with ``config``), "base" (the base's code with ``base_config``), and where
    the configs differ, and where they run, "baseline" (today's code with ``base_config``) and "base at winner" (the
    base's code with ``config``). Where the old config was kept, ``config`` is ``base_config``, and "pick" (today's
    code) and "base at winner" ran ``pick``, the config that was not better. ``same_code`` says that with
    ``base_config`` both versions compile to the same code and launch. ``disturbed`` says what disturbed the
    measurement, one phrase each; ``commit`` names the base. Raises ValueError where there is no "base", arms are not
    equally long, or a reading is not positive.
    """
    if disturbed:
        return disturbed_verdict(disturbed, "base")
    if "base" not in blocks:
        raise ValueError("blocks lacks the arm 'base'")
    if (undecided := too_few_verdict(block_count(blocks), policy.confidence, "base")) is not None:
        return undecided
    verdict = _compared(blocks, clock, policy, config, base_config, config if pick is None else pick, commit)
    if same_code and verdict.then_config is base_config and cannot_be_this_change(verdict):
        return not_this_change(verdict, "the compiled code and its launch are those of the base")
    return verdict


def _compared(
    blocks: Blocks, clock: Clock, policy: Policy, config: Config, base_config: Config, pick: Config, commit: str
) -> Verdict:
    known, base = policy.clocks[clock], _best_base(blocks, policy)
    then_ms, limit = median(blocks[base]), policy.widening * known.beside
    threshold = max(policy.threshold, 2 * limit, known.least_ms / then_ms)
    change = _ratio(blocks, "winner", base, policy, limit)
    kind = classified(change, threshold)
    same_config = token(config) == token(base_config if base == "base" else pick)
    code, search = _parts(blocks, policy, limit, base, same_config)
    against = f"the base commit {commit}".rstrip()
    faster = ", which is faster with today's choice than with its own config" if base != "base" else ""
    text = _threshold_text(threshold, 2 * limit, then_ms, clock, policy)
    return Verdict(
        kind,
        f"{_OUTCOMES[kind]} {against}{faster}: {change} side by side; {text}",
        change=change,
        code_change=code,
        search_change=search,
        threshold=threshold,
        blame=_blame(change, code, search) if kind is VerdictKind.REGRESSED else "",
        decided=kind is not VerdictKind.NOISY or block_count(blocks) >= policy.looks[-1],
        basis="base",
        against=against,
        then_ms=then_ms,
        then_config=base_config if base == "base" else pick,
    )


_OUTCOMES = {
    VerdictKind.REGRESSED: "slower than",
    VerdictKind.IMPROVED: "faster than",
    VerdictKind.OK: "no slower than",
    VerdictKind.NOISY: "undecided within the noise against",
}


def _best_base(blocks: Blocks, policy: Policy) -> str:
    own, other = _BASES
    if other not in blocks:
        return own
    return other if _ratio(blocks, other, own, policy).high < 0 else own


def _ratio(blocks: Blocks, arm: str, other: str, policy: Policy, limit: float = 0.0) -> Interval:
    return change_between(log_ratios(blocks[arm], blocks[other]), policy, limit=limit)


def _parts(
    blocks: Blocks, policy: Policy, limit: float, base: str, same_config: bool
) -> tuple[Interval | None, Interval | None]:
    """The code's part in the change, by arms of the same config, and the search's, by arms of today's code.

    ``same_config`` is said of the winner and ``base``, the arm that it is compared with.
    """
    if same_config:
        return _ratio(blocks, "winner", base, policy, limit), UNCHANGED
    other = next((arm for arm in _TODAYS[1:] if arm in blocks), None)
    search = _ratio(blocks, "winner", other, policy) if other else None
    for today, then in _SAME_CONFIG:
        if today in blocks and then in blocks:
            return _ratio(blocks, today, then, policy, limit), search
    return None, search


def _blame(change: Interval, code: Interval | None, search: Interval | None) -> str:
    """Code where it explains at least half of the change."""
    if code is not None and code.estimate >= (search.estimate if search else change.estimate / 2):
        return "code"
    return "search" if search else "config gone"


def cannot_be_this_change(verdict: Verdict) -> bool:
    """Whether a difference is no change of the kernel's, given that its code with the old config is what it was.

    Today's config must be the old one, or no slower than it today; for a gain, not faster by more than the threshold.
    """
    search = verdict.search_change
    if search is None or verdict.kind is VerdictKind.OK:
        return False
    if verdict.kind is VerdictKind.IMPROVED:
        return search.high >= -(verdict.threshold or 0.0)
    return search.low <= 0


def not_this_change(verdict: Verdict, because: str) -> Verdict:
    """``verdict`` as one on what surrounds the kernel."""
    reason = f"not this change, since {because}: {verdict.reason}"
    return replace(verdict, kind=VerdictKind.OK, reason=reason, blame="environment", decided=True)


def _threshold_text(threshold: float, finest: float, then_ms: float, clock: Clock, policy: Policy) -> str:
    text = f"threshold {percent(threshold)}"
    if threshold <= policy.threshold:
        return text
    if threshold > finest:
        return f"{text} instead of {percent(policy.threshold)}{too_small(policy.clocks[clock].least_ms, then_ms)}"
    finest_text = f"the finest that two kernels side by side allow on the {clock} clock"
    return f"{text} instead of {percent(policy.threshold)}, {finest_text}"


def order_effect(blocks: Blocks, arm: str, other: str) -> float:
    """By which fraction the median ratio of two arms is larger where ``arm`` came first in a block.

    ``blocks`` must be what one call of ``Benchmark.compare`` returned: it begins with block 0 of
    :func:`timing.block_order`, and names the arms in the order in which they were given. 0 where one order has no
    block. Raises ValueError as ``block_count`` does.
    """
    first, second = _by_order(blocks, arm, other)
    return math.expm1(median(first) - median(second)) if first and second else 0.0


def alternation_disturbance(blocks: Blocks, threshold: float) -> str | None:
    """What disturbed a measurement whose ratios depend on the order of its arms by more than ``threshold``, or None.

    ``blocks`` are those of :func:`order_effect`, taken on a GPU.
    """
    arms = [arm for arm in (*_TODAYS, *_BASES, "reference") if arm in blocks]
    for other in arms[1:]:
        if _matters(*_by_order(blocks, arms[0], other), threshold):
            effect = abs(order_effect(blocks, arms[0], other))
            return (
                f"the GPU's speed changed while arms alternated: {arms[0]} over {other} differs by {effect:.1%} between"
                " blocks that began with the one and with the other"
            )
    return None


def _by_order(blocks: Blocks, arm: str, other: str) -> tuple[list[float], list[float]]:
    """The log ratios of the blocks in which ``arm`` came first, and of those in which ``other`` did."""
    block_count(blocks)
    names = list(blocks)
    first: list[float] = []
    second: list[float] = []
    for block, ratio in enumerate(log_ratios(blocks[arm], blocks[other])):
        order = block_order(names, block)
        (first if order.index(arm) < order.index(other) else second).append(ratio)
    return first, second


def _matters(first: Sequence[float], second: Sequence[float], threshold: float) -> bool:
    if not first or not second:
        return False
    error = math.hypot(*(median_error(robust_deviation(half), len(half)) for half in (first, second)))
    return abs(median(first) - median(second)) > max(math.log1p(threshold), _CERTAIN * error)
