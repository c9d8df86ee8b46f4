"""The three-way decision: from a change and its interval to a verdict."""

# Rule 2, decision at 16, 32 and 64 blocks (0.2% of error on each side a look, 0.6% over three looks):
#   regressed  estimate > threshold and low > threshold / 2     ok  high < threshold     improved  high < -threshold
# A change of just the threshold fails half of the time: that is what a threshold means.

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pytest_kerneltune.statistics import Interval, fewest_values
from pytest_kerneltune.trial import Config


class VerdictKind(StrEnum):
    """What a comparison came to."""

    OK = "ok"
    REGRESSED = "regressed"
    IMPROVED = "improved"
    NEW = "new"
    INCOMPARABLE = "incomparable"
    NOISY = "noisy"
    INVALID = "invalid"


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    The changes are today against before, which is the base commit's code or the stored baseline: ``change`` of the
    winner, ``code_change`` of the code with the old config, ``search_change`` of the winner against the old config,
    both run today; None where unknown. ``threshold`` is the one used. ``blame`` is "code", "search" or "config gone"
    where regressed, "environment" where a difference is not the change's (then the verdict is ok), else "".
    ``decided`` is False where more blocks may decide.

    ``basis`` says what was compared with: "base" (the base commit's code, run beside), "baseline" (stored ratios),
    "alone" (stored latencies), "" (nothing). ``remarks`` are worth a word whatever the verdict. ``against`` names what
    was compared with, ``then_ms`` is its latency in ms and ``then_config`` its config.
    """

    kind: VerdictKind
    reason: str
    change: Interval | None = None
    code_change: Interval | None = None
    search_change: Interval | None = None
    threshold: float | None = None
    blame: str = ""
    decided: bool = True
    basis: str = ""
    remarks: tuple[str, ...] = ()
    against: str = ""
    then_ms: float | None = None
    then_config: Config | None = None


def disturbed_verdict(disturbed: Sequence[str], basis: str = "") -> Verdict:
    """The verdict on readings that something disturbed: a phrase each."""
    return Verdict(VerdictKind.INVALID, f"the measurement was disturbed: {'; '.join(disturbed)}", basis=basis)


def too_few_verdict(count: int, confidence: float, basis: str = "") -> Verdict | None:
    """The verdict on fewer blocks than an interval of this confidence takes; None where there are enough."""
    if count >= (fewest := fewest_values(confidence)):
        return None
    reason = f"{count} blocks are too few to judge: it takes {fewest}"
    return Verdict(VerdictKind.NOISY, reason, decided=False, basis=basis)


def classified(change: Interval, threshold: float) -> VerdictKind:
    """Rule 2; NOISY where nothing is certain yet."""
    if change.estimate > threshold and change.low > threshold / 2:
        return VerdictKind.REGRESSED
    if change.high < -threshold:
        return VerdictKind.IMPROVED
    return VerdictKind.OK if change.high < threshold else VerdictKind.NOISY


def combined(found: Sequence[VerdictKind], last: bool) -> tuple[VerdictKind, bool]:
    """The verdict of views that must all agree, and whether it is final; ``last`` where no more blocks will come."""
    kinds = set(found)
    if contradictory(kinds):
        return VerdictKind.NOISY, True
    if VerdictKind.NOISY in kinds:
        ruled_out = last and kinds & {VerdictKind.OK, VerdictKind.IMPROVED}
        return (VerdictKind.OK, True) if ruled_out else (VerdictKind.NOISY, last)
    return (found[0] if len(kinds) == 1 else VerdictKind.OK), True


def contradictory(kinds: Collection[VerdictKind]) -> bool:
    """Whether one view is red where another rules a regression out."""
    return VerdictKind.REGRESSED in kinds and not {VerdictKind.OK, VerdictKind.IMPROVED}.isdisjoint(kinds)
