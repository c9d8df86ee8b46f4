"""One process of ``stress_cache``: looks up, waits for its turn, tunes, and writes down what it does."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from pytest_kerneltune.cache import Cache, Entry, Flight, Run
from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Budget, Trial, best_trial
from tests.benchmarks.stress_ledger import Ledger

WAIT_S = 30.0
"""Seconds that a turn may be waited for."""

_TRIAL_S = 0.04
_TRIALS = 6  # that each request asks for beyond the one before
_PERIOD_S = 1.0  # after which requests ask for more


@dataclass(frozen=True)
class Stress:
    """What is asked of all processes; times are those of the monotonic clock."""

    directory: Path
    ledger: Path
    fingerprints: tuple[str, ...]
    lease_s: float
    hosts: int
    seed: int
    start: float
    end: float

    def wanted(self) -> int:
        """How many trials a request asks for by now."""
        return _TRIALS * (1 + int((time.monotonic() - self.start) / _PERIOD_S))


class Worker:
    """One process: looks up, waits, tunes, until the end."""

    def __init__(self, stress: Stress, who: int) -> None:
        self._stress, self._who = stress, who
        self._ledger = Ledger(stress.ledger, who)
        self._random = Random(f"{stress.seed}/{who}")
        self._cache = Cache(
            stress.directory,
            lambda text: self._ledger.write("warns", text=text),
            lease_s=stress.lease_s,
            wait_s=WAIT_S,
        )

    def work(self) -> None:
        while time.monotonic() < self._stress.end:
            self._visit(self._random.choice(self._stress.fingerprints), self._stress.wanted())

    def _visit(self, fingerprint: str, trials: int) -> None:
        if _satisfies(self._cache.lookup(fingerprint), trials):
            self._ledger.write("hits", fingerprint=fingerprint)
            time.sleep(self._random.uniform(0, _TRIAL_S))
            return
        self._ledger.write("want", fingerprint=fingerprint, trials=trials)
        with self._cache.flight(fingerprint, lambda owner: self._ledger.write("waits", owner=str(owner))) as flight:
            self._ledger.write("enters", fingerprint=fingerprint, interrupted=len(flight.interrupted))
            if not _satisfies(flight.entry, trials):
                self._tune(flight, fingerprint, trials)
            self._ledger.write("leaves", fingerprint=fingerprint)

    def _tune(self, flight: Flight, fingerprint: str, trials: int) -> None:
        entry = flight.entry or Entry(fingerprint, "stressed", (), None)
        known = [*entry.trials, *flight.interrupted]
        run = Run("Stress", Effort.FULL, self._who, False, _now(), budget_configs=trials, origin={"host": _host()})
        flight.begin(run)
        made = tuple(self._measured(flight, fingerprint, number) for number in range(len(known), trials))
        best = best_trial([*known, *made])
        winner = best.config if best else None
        flight.store(replace(entry, runs=(*entry.runs, replace(run, created=_now(), trials=made)), winner=winner))
        self._ledger.write("stored", fingerprint=fingerprint)

    def _measured(self, flight: Flight, fingerprint: str, number: int) -> Trial:
        time.sleep(self._random.uniform(0, 2 * _TRIAL_S))
        name = f"{fingerprint[:6]} {self._who} {number} {time.monotonic_ns()}"
        latency_ms = self._random.uniform(1, 2)
        trial = Trial({"name": name}, latency_ms=latency_ms, samples_ms=(latency_ms,) * 5)
        self._ledger.write("before", fingerprint=fingerprint, trial=name)
        flight.record(trial)
        self._ledger.write("after", fingerprint=fingerprint, trial=name)
        return trial


def _satisfies(entry: Entry | None, trials: int) -> bool:
    return entry is not None and entry.satisfies(Effort.FULL, Budget(configs=trials))


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _host() -> str:
    return socket.gethostname()
