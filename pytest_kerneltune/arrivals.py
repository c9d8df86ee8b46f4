"""What the tests' reports bring to the process that sums up a run, and how it becomes one outcome a kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_kerneltune.outcome import Outcome
from pytest_kerneltune.report import format as form
from pytest_kerneltune.report.annotations import Failure


@dataclass(frozen=True)
class Arrival:
    """An outcome with what is known of the test report that brought it.

    ``worker`` names the xdist worker, "" without xdist. ``is_repeated`` says that the test was run again, so that this
    is not its last word. ``failed_at`` is the file (relative to the root directory) and the line (from 1) of a test
    that failed, else None.
    """

    outcome: Outcome
    worker: str = ""
    is_repeated: bool = False
    failed_at: tuple[str, int] | None = None

    @classmethod
    def of(cls, report: Any, data: Mapping[str, Any]) -> Arrival:
        """The outcome whose JSON ``data`` came with a pytest test report."""
        path, line, _ = report.location
        place = (path.replace("\\", "/"), (line or 0) + 1) if report.failed else None
        is_repeated = report.outcome == "rerun"  # as pytest-rerunfailures says
        return cls(Outcome.from_json(data), getattr(report, "worker_id", ""), is_repeated, place)


def merged(arrivals: Iterable[Arrival]) -> list[Outcome]:
    """One outcome a kernel, in order of arrival: of several (two xdist workers met it, or a test's marker judges it by
    another threshold) the worst, one that fails before all others.

    A later measurement in the same worker stands in for what came before, save for a failure that was a test's last
    word. What only repeated tests brought counts where nothing else did (the worker crashed).
    """
    found: dict[str, list[Arrival]] = {}
    for arrival in arrivals:
        same = found.setdefault(arrival.outcome.id, [])
        if arrival.outcome.is_rerun:
            same[:] = [a for a in same if a.worker != arrival.worker or a.is_repeated or a.outcome.verdict.fails]
        same.append(arrival)
    return [_worst([a.outcome for a in same if not a.is_repeated] or [same[-1].outcome]) for same in found.values()]


def _worst(outcomes: Sequence[Outcome]) -> Outcome:
    return min(form.worst_first(outcomes), key=lambda o: not o.verdict.fails)


def namesakes(outcomes: Iterable[Outcome]) -> list[str]:
    """The ids that two different kernels share, so that neither can have a baseline."""
    fingerprints: dict[str, set[str]] = {}
    for outcome in outcomes:
        fingerprints.setdefault(outcome.id, set()).add(outcome.fingerprint)
    return [kernel for kernel, different in fingerprints.items() if len(different) > 1]


def failures(arrivals: Iterable[Arrival], outcomes: Iterable[Outcome]) -> list[Failure]:
    """Those of ``outcomes``, one a kernel, that failed a test, with its place."""
    places: dict[str, tuple[str, int]] = {}
    for arrival in arrivals:
        if arrival.failed_at is not None:
            places.setdefault(arrival.outcome.id, arrival.failed_at)
    return [Failure(o, *places[o.id]) for o in outcomes if o.verdict.fails and o.id in places]
