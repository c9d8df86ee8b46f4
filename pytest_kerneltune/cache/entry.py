"""What the cache knows of one kernel: every run of a search with its trials, and the config that won.

A later request is answered by an entry if one of its runs was no smaller. What an entry lacks is found by another run,
which goes on from the trials that are there: so runs are only ever added.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Budget, Config, Trial

MOST_TRIALS = 20_000
"""Trials that an entry keeps; of more the oldest go."""

_MOST_RUNS = 64  # of more the oldest become one
_RANK = {Effort.NONE: 0, Effort.QUICK: 1, Effort.FULL: 2}


@dataclass(frozen=True)
class Run:
    """One search for the kernel's config: what was asked for, what made it, and the trials that it measured itself.

    ``finished`` says that the search ended by itself: no budget cut it short. ``budget_seconds`` and ``budget_configs``
    are the budget it had, None for no limit. ``created`` is the ISO 8601 date at which it ended or, of one that was
    killed, began; "" where nobody knows. ``origin`` says what made it (host, device, versions). ``token`` is the name
    of the journal that the trials came from, "" for none: runs of one token are the same run.
    """

    algorithm: str
    effort: Effort
    seed: int
    finished: bool
    created: str
    trials: tuple[Trial, ...] = ()
    budget_seconds: float | None = None
    budget_configs: int | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    token: str = ""

    def covers(self, effort: Effort, budget: Budget) -> bool:
        """Whether a search at ``effort`` within ``budget`` would have been no larger than this one."""
        return _RANK[self.effort] >= _RANK[effort] and (self.finished or self._had_budget_of(budget))

    def _had_budget_of(self, budget: Budget) -> bool:
        had = ((self.budget_seconds, budget.seconds), (self.budget_configs, budget.configs))
        was_limited = any(own is not None for own, _ in had)
        return was_limited and all(own is None or (wanted is not None and wanted <= own) for own, wanted in had)

    @property
    def extent(self) -> tuple[int, bool, float, float, int]:
        """How much the search covered, for comparing: effort, whether it finished, its budget, its trials."""
        seconds, configs = (math.inf if b is None else b for b in (self.budget_seconds, self.budget_configs))
        limited = self.budget_seconds is not None or self.budget_configs is not None
        return _RANK[self.effort], self.finished, *((seconds, configs) if limited else (0.0, 0.0)), len(self.trials)


UNKNOWN_RUN = Run("", Effort.NONE, 0, False, "")
"""A search of which nothing is known."""


@dataclass(frozen=True)
class Finalist:
    """One arm of the comparison that chose the winner: readings in ms, taken in turn with the other finalists'."""

    config: Config
    readings_ms: tuple[float, ...]


@dataclass(frozen=True)
class Verification:
    """How the winner was verified: when (ISO 8601), and side by side with whom.

    ``checked`` says that its output was compared with a reference's after the last trial. ``finalists`` has the winner
    first; it is empty where nothing else came near.
    """

    created: str
    checked: bool
    finalists: tuple[Finalist, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What is known about one kernel at fixed inputs on one device.

    ``runs`` are all searches for it, oldest first; ``winner`` is None where all configs failed. ``family`` and
    ``inputs`` (one line each) are what other kernels are related by; entries of older versions may have neither.
    """

    fingerprint: str
    kernel: str
    runs: tuple[Run, ...]
    winner: Config | None
    family: str = ""
    inputs: tuple[str, ...] = ()
    verification: Verification | None = None

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """All attempts of all runs, in order."""
        return tuple(trial for run in self.runs for trial in run.trials)

    @property
    def last(self) -> Run:
        """The run that ended last; ``UNKNOWN_RUN`` where there is none."""
        return self.runs[-1] if self.runs else UNKNOWN_RUN

    @property
    def device(self) -> str:
        """The device's name for people, "" where nobody knows."""
        return next((run.origin["device"] for run in reversed(self.runs) if run.origin.get("device")), "")

    @property
    def latency_ms(self) -> float:
        """The least latency that the winner was tried at; inf where there is none."""
        return min((t.latency_ms for t in self.trials if t.ok and t.config == self.winner), default=math.inf)

    @property
    def reach(self) -> tuple[int, bool, float, float]:
        """How much the largest search covered that was not killed, for comparing: all but the trials of an extent."""
        covering = (r for r in self.runs if r.finished or r.budget_seconds is not None or r.budget_configs is not None)
        return max((run.extent[:4] for run in covering), default=(0, False, 0.0, 0.0))

    def satisfies(self, effort: Effort, budget: Budget) -> bool:
        """Whether a search at ``effort`` within ``budget`` need not be made, because one of these was no smaller.

        An entry without a winner never satisfies: what failed then may work now. One that reached a latency which is
        good enough does, however it came by it.
        """
        if self.winner is None:
            return False
        if budget.target_ms is not None and self.latency_ms <= budget.target_ms:
            return True
        return any(run.covers(effort, budget) for run in self.runs)

    def with_runs(self, runs: Iterable[Run]) -> Entry:
        """This entry with ``runs``, each once, within the limits of an entry."""
        return replace(self, runs=_bounded(_distinct(runs)))


def merged(one: Entry, other: Entry) -> Entry:
    """Both entries' runs; the winner is that of the entry with the larger search, of equals the later one's.

    Raises ValueError where they are of two kernels.
    """
    if one.fingerprint != other.fingerprint:
        raise ValueError(f"entries of two kernels, {one.fingerprint} and {other.fingerprint}, cannot be merged")
    chosen = max(other, one, key=_weight)
    runs = sorted(_distinct([*one.runs, *other.runs]), key=lambda run: run.created)
    return replace(chosen, family=chosen.family or one.family or other.family).with_runs(runs)


def beyond(trials: Sequence[Trial], known: Iterable[Trial]) -> tuple[Trial, ...]:
    """Those of ``trials`` that are not among ``known``."""
    identities = {_identity(trial) for trial in known}
    return tuple(trial for trial in trials if _identity(trial) not in identities)


def _identity(trial: Trial) -> str:
    return json.dumps(trial.to_json(), sort_keys=True)


def _weight(entry: Entry) -> tuple[Any, ...]:
    extent = max((run.extent for run in entry.runs), default=(0, False, 0.0, 0.0, 0))
    return entry.winner is not None, extent, max((run.created for run in entry.runs), default="")


def _distinct(runs: Iterable[Run]) -> list[Run]:
    """Each run once, in the first one's place: of one token the most trials, and the most that was said of it.

    Who takes over from a process that lives says that its search was interrupted; that process knows better.
    """
    found: dict[Any, Run] = {}
    for run in runs:
        key = run.token or json.dumps(_facts(run), sort_keys=True)
        known = found.setdefault(key, run)
        if known is not run:
            longest = max(known, run, key=lambda each: (len(each.trials), each.extent))
            found[key] = replace(max(known, run, key=lambda each: each.extent), trials=longest.trials)
    return list(found.values())


def _facts(run: Run) -> list[Any]:
    return [run.algorithm, run.effort, run.seed, run.created, [trial.to_json() for trial in run.trials]]


def _one_of(runs: Sequence[Run]) -> Run:
    """One run for several: it says what the largest of them said, and has all their trials, each once."""
    trials = {_identity(trial): trial for run in runs for trial in run.trials}
    return replace(max(runs, key=lambda run: run.extent), created=runs[-1].created, trials=tuple(trials.values()))


def _bounded(runs: list[Run]) -> tuple[Run, ...]:
    surplus = len(runs) - _MOST_RUNS
    if surplus > 0:
        runs = [_one_of(runs[: surplus + 1]), *runs[surplus + 1 :]]
    excess = sum(len(run.trials) for run in runs) - MOST_TRIALS
    kept = []
    for run in runs:
        dropped = min(max(0, excess), len(run.trials))
        excess -= dropped
        kept.append(replace(run, trials=run.trials[dropped:]) if dropped else run)
    return tuple(kept)
