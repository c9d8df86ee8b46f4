"""Which ways to compare with a stored baseline decide, and by what threshold."""

# Rule 3, the threshold is the user's, but no less than twice a view's limit: there "low > threshold / 2" and "estimate
# > threshold" meet; and no less than the change in ms that counts at all. Today's noise does not raise the threshold:
# it widens the interval, so it asks for more blocks and ends as noisy, not as ok.
#
# Rule 4, host clocks. Speed differs between cores and neighbours and a yardstick follows only in part, so a regression
# must show in every view: the latency itself and its ratio to each yardstick. Where one view is red and another rules a
# regression out, the machine changed. At the last look one view that rules it out makes up for undecided ones. A
# yardstick so short that dividing by it adds more noise than it removes is left out. Where every ratio says more than
# twice the threshold, half of the threshold will do for the latency itself: that much a faster machine may hide.
#
# Rule 5, on cuda the view of the least error decides, with those that are about as certain: mostly the ratio to the
# reference, alone. Where it finds a change that the ratios to all calibration kernels contradict (their intervals lie
# on the other side of it), the reference changed, and they decide instead, as Rule 4 has it. Where only some of them
# contradict, nothing is said.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pytest_kerneltune.gate.decision import VerdictKind, classified, combined
from pytest_kerneltune.gate.policy import Policy
from pytest_kerneltune.gate.views import FROZEN, View, changes_since
from pytest_kerneltune.gate.wording import format_ms
from pytest_kerneltune.record import Baseline, Blocks
from pytest_kerneltune.statistics import Interval
from pytest_kerneltune.trial import Clock

_USEFUL = 1.5  # a view that is this much less certain than another adds nothing to it


@dataclass(frozen=True)
class Panel:
    """The views that decide, with their changes and what each of them finds by the ``threshold``.

    ``divided`` says that calibration kernels disagree about what the first view finds.
    """

    changes: Mapping[View, Interval]
    threshold: float
    found: tuple[VerdictKind, ...]
    divided: bool = False

    def verdict(self, last: bool) -> tuple[VerdictKind, bool]:
        """The panel's verdict, and whether it is final; ``last`` where no more blocks will come."""
        return (VerdictKind.NOISY, last) if self.divided else combined(self.found, last)

    @property
    def modest(self) -> View:
        """The view that claims least."""
        return min(self.changes, key=lambda view: abs(self.changes[view].estimate))


def deciding_panel(
    blocks: Blocks, baseline: Baseline, clock: Clock, policy: Policy, views: Sequence[View]
) -> tuple[Panel, list[str]]:
    """The panel of those ``views`` that decide, and a remark where the reference is not what it was."""
    least_ms = policy.clocks[clock].least_ms
    least = max(policy.threshold, least_ms / baseline.latency_ms)
    first = min(views, key=lambda view: view.error) if clock == "cuda" else views[-1]
    others = [view for view in views if view is not first and view.yardstick and view.error <= _USEFUL * first.error]
    if clock != "cuda":
        return _unhidden(_judged(blocks, [first, *others], policy, least)), []
    if first.yardstick != "reference":
        chosen = [first, *others] if first.yardstick else [first]
        return _judged(blocks, chosen, policy, least), _moved_reference(blocks, baseline, policy)
    panel = _judged(blocks, [first], policy, least)
    if frozen := [view for view in views if view.yardstick in FROZEN]:
        return _heard(panel, _judged(blocks, frozen, policy, least), policy)
    return panel, _moved_reference(blocks, baseline, policy)


def _judged(blocks: Blocks, views: Sequence[View], policy: Policy, least: float) -> Panel:
    """Rule 3."""
    changes = changes_since(blocks, "winner", views, policy)
    threshold = max(least, *(2 * view.limit for view in views))
    return Panel(changes, threshold, tuple(classified(change, threshold) for change in changes.values()))


def _unhidden(panel: Panel) -> Panel:
    """Rule 4's last sentence; the latency is the panel's first view."""
    alone, *ratios = panel.changes.values()
    red = all(kind is VerdictKind.REGRESSED for kind in panel.found[1:])
    is_plain = ratios and red and all(ratio.estimate > 2 * panel.threshold for ratio in ratios)
    if is_plain and alone.estimate > panel.threshold / 2:
        return replace(panel, found=(VerdictKind.REGRESSED,) * len(panel.found))
    return panel


def _heard(panel: Panel, frozen: Panel, policy: Policy) -> tuple[Panel, list[str]]:
    """Rule 5: who decides after the calibration kernels have been heard about the ratio to the reference."""
    (claim,) = panel.changes.values()
    below = [change.high < claim.low for change in frozen.changes.values()]
    above = [change.low > claim.high for change in frozen.changes.values()]
    contradicted = {VerdictKind.REGRESSED: below, VerdictKind.IMPROVED: above}.get(panel.found[0], [False])
    moved = (1 + median(change.estimate for change in frozen.changes.values())) / (1 + claim.estimate) - 1
    remark = f"the reference itself became {abs(moved):.0%} {'faster' if moved < 0 else 'slower'}"
    if all(contradicted):
        return frozen, [f"{remark} against the calibration kernels; compared by these instead"]
    if any(contradicted):
        return replace(panel, changes={**panel.changes, **frozen.changes}, divided=True), []
    if (all(below) or all(above)) and abs(moved) > policy.threshold:
        return panel, [f"{remark} against the calibration kernels: did it or its library change?"]
    return panel, []


def _moved_reference(blocks: Blocks, baseline: Baseline, policy: Policy) -> list[str]:
    """A remark where the reference's own latency moved by more than a GPU's clocks do."""
    if "reference" not in blocks or "reference" not in baseline.yardsticks:
        return []
    then, now = baseline.yardsticks["reference"], median(blocks["reference"])
    if max(then / now, now / then) <= 1 + policy.yardstick_drift:
        return []
    return [f"the reference itself went from {format_ms(then)} to {format_ms(now)}: did it or its library change?"]
