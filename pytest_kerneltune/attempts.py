"""What the replies to attempted configs say: their trials, and how long the next attempt may take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pytest_kerneltune.compilation import Compiled, described, failed
from pytest_kerneltune.errors import RemoteError, WorkerCrash, WorkerError, WorkerTimeout
from pytest_kerneltune.launcher import SHORTEST_LIMIT_S
from pytest_kerneltune.timing import summarise
from pytest_kerneltune.trial import Clock, Status, Trial
from pytest_kerneltune.worker import Reply

_LOG_LIMIT = 4_000
_SLOWEST = 50.0  # a config this many times slower than the quickest one so far is as good as hung
_SLOWEST_BLOCK = 10.0  # the same of one arm's block in a comparison
_FIRST = 2_000.0  # times the reference, while no config has worked
_HOPELESS = 3  # so many timeouts before anything worked shorten the limit
_DIGITS = 7  # of a reading: far more than any clock has, and half of what a cache would have to read
_LACKING = ("out of memory", "out of resource", "too many resources", "OUT_OF_RESOURCES")  # as drivers say it


class Attempts:
    """The checked and timed configs of one kernel."""

    def __init__(self, clock: Clock, cap_s: float) -> None:
        """``cap_s`` is the longest that checking and timing one config may take."""
        self._clock, self._cap_s = clock, cap_s
        self._quickest_s = math.inf
        self._timeouts = 0

    def limit_s(self, reference_ms: float) -> float:
        """Seconds that the next attempt may take; 0 ms stands for a reference of which nothing is known."""
        shortest = SHORTEST_LIMIT_S[self._clock]
        if math.isfinite(self._quickest_s):
            return min(self._cap_s, max(shortest, _SLOWEST * self._quickest_s))
        if self._timeouts >= _HOPELESS:
            return min(self._cap_s, shortest)
        is_known = reference_ms > 0 and self._clock == "cuda"
        return min(self._cap_s, max(shortest, _FIRST * reference_ms / 1e3) if is_known else math.inf)

    def comparison_limit_s(self, arms: int, blocks: int, reference_ms: float) -> float:
        """Seconds that comparing so many arms may take: each is checked again, and read in each of the blocks.

        A block is fewer launches than an attempt was; a kernel that begins to hang after many is not waited for long.
        """
        attempt_s = self.limit_s(reference_ms)
        block_s = min(attempt_s, _SLOWEST_BLOCK * self._quickest_s)
        return arms * (attempt_s + blocks * block_s)

    def timed(self, compiled: Compiled, reply: Reply) -> Trial:
        """The trial of a config that was to be checked and timed."""
        wrong, readings = reply.value or (None, ())
        return self._trial(compiled, reply, wrong, readings)

    def checked(self, compiled: Compiled, reply: Reply) -> Trial:
        """The trial of a config that was only to be checked."""
        return self._trial(compiled, reply, reply.value, ())

    def _trial(self, compiled: Compiled, reply: Reply, wrong: str | None, readings: Sequence[float]) -> Trial:
        log = "\n".join(text for text in (compiled.log, reply.log) if text)
        trial = Trial(compiled.config, log=log[-_LOG_LIMIT:], compile_s=compiled.seconds, measure_s=reply.seconds)
        trial = replace(trial, **described(compiled.build))
        if reply.error is not None:
            self._timeouts += isinstance(reply.error, WorkerTimeout)
            return failed(trial, _status(reply.error), reply.error)
        if wrong is not None:
            return replace(trial, status=Status.WRONG, reason=f"output {wrong}")
        self._quickest_s = min(self._quickest_s, reply.seconds)  # of the right ones: a wrong one may do too little
        if not readings:
            return trial
        samples_ms = tuple(float(f"{reading:.{_DIGITS}g}") for reading in readings)
        return replace(trial, latency_ms=summarise(self._clock, samples_ms), samples_ms=samples_ms)


def _status(error: WorkerError) -> Status:
    if isinstance(error, WorkerTimeout):
        return Status.RUN_TIMEOUT
    if isinstance(error, WorkerCrash):
        return Status.CRASH
    lacking = isinstance(error, RemoteError) and (
        error.kind in ("OutOfResources", "OutOfMemoryError") or any(text in str(error) for text in _LACKING)
    )
    return Status.OUT_OF_RESOURCES if lacking else Status.RUNTIME_ERROR
