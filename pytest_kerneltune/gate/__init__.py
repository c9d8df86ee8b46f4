"""The gate: is a kernel slower than its baseline, by how much, and what is to blame. Pure functions of readings."""

# What the rules rest on
# ----------------------
# ln(latency) = kernel + device + session + drift + block. Drift is common to arms measured side by side, so block i of
# one arm is divided by block i of another. On an H200 a matmul's own time wandered by -5% to +12% within two seconds
# (power cap), its ratio to the reference by 0.1 to 0.2%. Within a session the median of the blocks' log ratios has an
# interval from order statistics, so outlier blocks and odd distributions do no harm.
#
# Rule 1 (what may differ from process to process) is in views.py, Rule 2 (the three-way decision) in decision.py, Rules
# 3 to 5 (the threshold, and which ways to compare decide) in panel.py, their numbers in policy.py. beside.py judges two
# versions of a kernel in one process, without what differs between two.
#
# Rule 6, the same compiled code with the same config under the same driver did not change: another reading is due to
# what surrounds it, up to a tenth or twice the threshold. Beyond that it may be due to the inputs' contents.

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_kerneltune.gate.beside import (
    UNCHANGED,
    alternation_disturbance,
    cannot_be_this_change,
    judge_beside,
    not_this_change,
    order_effect,
)
from pytest_kerneltune.gate.decision import Verdict, VerdictKind, contradictory, disturbed_verdict, too_few_verdict
from pytest_kerneltune.gate.panel import Panel, deciding_panel
from pytest_kerneltune.gate.policy import ClockError, Policy
from pytest_kerneltune.gate.views import View, change_between, change_since, stored_views
from pytest_kerneltune.gate.wording import (
    differences,
    format_ms,
    percent,
    regression_message,
    sessions_text,
    token,
    too_small,
)
from pytest_kerneltune.record import Baseline, Blocks, block_count, measured_baseline
from pytest_kerneltune.statistics import Interval, log_ratios
from pytest_kerneltune.trial import Clock, Config

__all__ = [
    "Baseline",
    "Blocks",
    "ClockError",
    "Interval",
    "Policy",
    "Verdict",
    "VerdictKind",
    "alternation_disturbance",
    "format_ms",
    "judge",
    "judge_beside",
    "measured_baseline",
    "order_effect",
    "regression_message",
]

_NOTHING: Mapping[str, str] = {}
_LARGEST_DRIFT = 0.10
_DRIVER = "driver"


def judge(
    blocks: Blocks,
    baseline: Baseline | None,
    contract: Mapping[str, str],
    clock: Clock,
    policy: Policy,
    disturbed: Sequence[str] = (),
    *,
    config: Config,
    code: str = "",
    environment: Mapping[str, str] = _NOTHING,
) -> Verdict:
    """Compare a fresh measurement of the winner, whose config is ``config``, with the stored baseline.

    ``blocks`` holds the arm "winner", yardsticks where there are any, and as "baseline" the stored config run today,
    which is left out where it equals ``config`` or no longer runs. ``contract`` and ``clock`` are today's;
    ``disturbed`` says what disturbed the measurement, one phrase each. ``code`` is the digest of today's compiled code
    of the baseline's config ("" unknown), ``environment`` what may differ between comparable sessions. Raises
    ValueError where the arms are not equally long or a reading is not positive.
    """
    if disturbed:
        return disturbed_verdict(disturbed)
    if baseline is None:
        return Verdict(VerdictKind.NEW, "there is no baseline yet")
    if different := differences(baseline.contract, contract):
        return Verdict(VerdictKind.INCOMPARABLE, f"the baseline was measured under other conditions: {different}")
    if (undecided := too_few_verdict(block_count(blocks), policy.confidence)) is not None:
        return undecided
    verdict = _compared(blocks, baseline, clock, policy, config, environment)
    if _same_code(baseline, code, environment) and cannot_be_this_change(verdict) and _may_be_drift(verdict):
        known = _DRIVER in environment and _DRIVER in baseline.sessions[-1].environment
        driver = " and the driver" if known else ""
        return not_this_change(verdict, f"the compiled code{driver} are those of the baseline")
    return verdict


def _compared(
    blocks: Blocks, baseline: Baseline, clock: Clock, policy: Policy, config: Config, environment: Mapping[str, str]
) -> Verdict:
    surroundings = _changed_surroundings(baseline, environment)
    views = stored_views(blocks, baseline, clock, policy, bool(surroundings))
    panel, drift = deciding_panel(blocks, baseline, clock, policy, views)
    kind, decided = panel.verdict(block_count(blocks) >= policy.looks[-1])
    view = panel.modest
    code, search, blame = _parts(blocks, baseline, view, policy, config)
    basis = "baseline" if any(v.yardstick for v in panel.changes) else "alone"
    return Verdict(
        kind,
        f"{_outcome(kind, panel)}; {_threshold_text(panel, baseline, clock, policy)}",
        change=panel.changes[view],
        code_change=code,
        search_change=search,
        threshold=panel.threshold,
        blame=blame if kind is VerdictKind.REGRESSED else "",
        decided=decided,
        basis=basis,
        remarks=(*drift, *surroundings, *_weaknesses(basis, view, policy)),
        against=sessions_text(baseline),
        then_ms=baseline.latency_ms,
        then_config=baseline.config,
    )


def _parts(
    blocks: Blocks, baseline: Baseline, view: View, policy: Policy, config: Config
) -> tuple[Interval | None, Interval | None, str]:
    """The code's and the search's part in the change, and which is to blame for a regression."""
    if token(config) == token(baseline.config):
        return change_since(blocks, "winner", view, policy), UNCHANGED, "code"
    if "baseline" not in blocks:
        return None, None, "config gone"
    code = change_since(blocks, "baseline", view, policy)
    search = change_between(log_ratios(blocks["winner"], blocks["baseline"]), policy)
    return code, search, "code" if code.estimate >= search.estimate else "search"


def _may_be_drift(verdict: Verdict) -> bool:
    """Whether a change is no larger than what environments make: beyond that other contents of the inputs, of which
    nothing is stored, or what is done around the launches are to blame, and they may well be this change."""
    return verdict.change is None or verdict.change.low < max(_LARGEST_DRIFT, 2 * (verdict.threshold or 0.0))


def _same_code(baseline: Baseline, code: str, environment: Mapping[str, str]) -> bool:
    """Rule 6."""
    then = baseline.sessions[-1].environment
    drivers = {facts[_DRIVER] for facts in (then, environment) if _DRIVER in facts}
    return bool(code) and code == baseline.code and len(drivers) < 2


def _outcome(kind: VerdictKind, panel: Panel) -> str:
    measured = ", ".join(f"{view.name} {change}" for view, change in panel.changes.items())
    if panel.divided:
        return f"{measured} disagree: it may be the reference that changed"
    if contradictory(panel.found):
        return f"{measured} disagree: the machine's speed changed, so nothing is said about the kernel"
    return f"{_OUTCOMES[kind]}: {measured}"


_OUTCOMES = {
    VerdictKind.REGRESSED: "slower than the baseline",
    VerdictKind.IMPROVED: "faster than the baseline",
    VerdictKind.OK: "no slower than the baseline",
    VerdictKind.NOISY: "undecided within the noise",
}


def _threshold_text(panel: Panel, baseline: Baseline, clock: Clock, policy: Policy) -> str:
    text = f"threshold {percent(panel.threshold)}"
    if panel.threshold <= policy.threshold:
        return text
    wish = f"{text} instead of {percent(policy.threshold)}, the finest that"
    least_ms = policy.clocks[clock].least_ms
    if panel.threshold == least_ms / baseline.latency_ms:
        return f"{text} instead of {percent(policy.threshold)}{too_small(least_ms, baseline.latency_ms)}"
    if clock == "cuda" and not panel.modest.yardstick:
        return f"{wish} a GPU latency without a (long enough) reference beside it allows"
    sessions = f"a baseline of {sessions_text(baseline)}"
    return f"{wish} {sessions} allows at {format_ms(baseline.latency_ms)} on the {clock} clock"


def _changed_surroundings(baseline: Baseline, environment: Mapping[str, str]) -> list[str]:
    """What differs from the last session, of the facts that both know."""
    then = baseline.sessions[-1].environment
    known = then.keys() & environment.keys()
    text = differences({key: then[key] for key in known}, {key: environment[key] for key in known})
    return [f"since the baseline, {text}"] if text else []


def _weaknesses(basis: str, view: View, policy: Policy) -> list[str]:
    found = []
    if view.sessions < policy.mature:
        found.append(f"young baseline: {view.sessions} of {policy.mature} sessions, so the limits are wider")
    if basis == "alone":
        found.append("weak: judged by its latency alone; give the kernel a reference= to be compared with")
    return found
