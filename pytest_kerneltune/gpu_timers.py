"""Timing launches on a CUDA GPU: one at a time with a cold L2 cache, or many at once.

Both kinds time the current stream with CUDA events, and keep the GPU busy with flushes of the L2 cache while the host
enqueues what is timed: else launch overhead would show in the reading.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.timing import BATCH

EVENTS = "cuda-events, L2 flushed"
BATCHES = f"cuda-events around {BATCH} launches, L2 flushed before the first"
"""Methods in words, as contracts hold them."""


class Flush:
    """Writes a buffer larger than the L2 cache, in about 70 us on a GPU with 4 TB/s: more than a launch takes the
    host."""

    _BYTES = 256 * 2**20

    def __init__(self) -> None:
        import torch

        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        size = max(self._BYTES, 2 * int(getattr(properties, "L2_cache_size", 0)))
        self._buffer = torch.empty(size // 4, dtype=torch.int32, device="cuda")

    def __call__(self, times: int = 1) -> None:
        for _ in range(times):
            self._buffer.zero_()


class EventTimer:
    """A pair of events around each launch, the L2 cache flushed before it: every launch finds the cache cold."""

    method = EVENTS

    _HEAD_START = 4  # flushes that keep the GPU busy while the host enqueues the first launches
    _IN_FLIGHT = 64  # launches enqueued before the host waits

    def __init__(self, flush: Flush | None = None) -> None:
        import torch

        self.flush = flush or Flush()
        self._synchronize: Callable[[], None] = torch.cuda.synchronize
        self._events = [(_event(), _event()) for _ in range(self._IN_FLIGHT)]

    def wait(self) -> None:
        """Return when all that was launched has run. An error of the kernel surfaces here, as torch's RuntimeError."""
        self._synchronize()

    def measure(
        self, launch: Callable[[], Any], count: int, before: Callable[[], Any] | None = None, launches: int = 1
    ) -> list[float]:
        """``count`` readings in ms, each the mean of ``launches`` launches (all but the first with a warm cache).

        ``before`` runs untimed before each reading. An error of the kernel surfaces here, as torch's RuntimeError.
        """
        readings: list[float] = []
        while len(readings) < count:
            readings += self._burst([launch] * min(self._IN_FLIGHT, count - len(readings)), before, launches)
        return readings

    def alternate(self, launches: Sequence[Callable[[], Any]], count: int) -> list[list[float]]:
        """``count`` readings in ms of each of ``launches``, which take turns launch by launch, forward and backward.

        What makes the GPU slower for a millisecond hits all of them alike.
        """
        readings: list[list[float]] = [[] for _ in launches]
        places = list(range(len(launches)))
        left = [place for turn in range(count) for place in (places if turn % 2 == 0 else places[::-1])]
        while left:
            some, left = left[: self._IN_FLIGHT], left[self._IN_FLIGHT :]
            for place, reading in zip(some, self._burst([launches[place] for place in some], None, 1), strict=True):
                readings[place].append(reading)
        return readings

    def _burst(
        self, sequence: Sequence[Callable[[], Any]], before: Callable[[], Any] | None, launches: int
    ) -> list[float]:
        self.flush(self._HEAD_START)
        timed = list(zip(self._events, sequence, strict=False))
        for (start, end), launch in timed:
            if before is not None:
                before()
            self.flush()
            start.record()
            for _ in range(launches):
                launch()
            end.record()
        self._synchronize()
        return [start.elapsed_time(end) / launches for (start, end), _ in timed]


class BatchTimer:
    """A pair of events around ``BATCH`` launches, enqueued back to back while the GPU is still busy with flushes.

    For kernels whose launch takes the host longer than the GPU: the launches then follow each other as closely as the
    GPU lets them, and all but the first find what they share in the cache, as in a loop that launches ahead. That the
    GPU was never idle is checked in every reading: the event before the first launch must not have happened by the time
    the last one is enqueued.
    """

    method = BATCHES

    _FIRST_FLUSHES, _MOST_FLUSHES = 16, 400  # 400 take about 30 ms: what is enqueued no faster waits for the GPU
    _MARGIN = 1.5  # flushes last so many times as long as the last batch took the host
    _TRIES = 6

    def __init__(self, flush: Flush) -> None:
        import torch

        self._flush, self._flushes = flush, self._FIRST_FLUSHES
        self._synchronize: Callable[[], None] = torch.cuda.synchronize
        self._start, self._end = _event(), _event()
        flush(1)  # the first one loads the code
        self._start.record()
        flush(self._FIRST_FLUSHES)
        self._end.record()
        self._synchronize()
        self._flush_ms = max(1e-3, self._start.elapsed_time(self._end) / self._FIRST_FLUSHES)

    def wait(self) -> None:
        """As EventTimer has it."""
        self._synchronize()

    def measure(
        self, launch: Callable[[], Any], count: int, before: Callable[[], Any] | None = None, launches: int = 1
    ) -> list[float]:
        """``count`` readings in ms, each the mean of ``BATCH`` launches.

        Raises KernelError where the launches cannot be enqueued ahead of the GPU (they wait for it, or are too many
        for its queue), and ValueError for ``before`` or ``launches``: nothing can be done between these launches.
        """
        if before is not None or launches != 1:
            raise ValueError("a batch has a length of its own, and nothing can be restored between its launches")
        return [self._reading(launch) for _ in range(count)]

    def _reading(self, launch: Callable[[], Any]) -> float:
        for _ in range(self._TRIES):
            if self._is_ahead(launch):
                return float(self._start.elapsed_time(self._end)) / BATCH
        raise KernelError(f"{BATCH} launches cannot be enqueued while the GPU is busy: they wait for it")

    def _is_ahead(self, launch: Callable[[], Any]) -> bool:
        """Enqueue and run one batch; whether all of it was enqueued before the GPU began with it."""
        self._flush(self._flushes)
        self._start.record()
        begun = time.perf_counter()
        for _ in range(BATCH):
            launch()
        is_ahead = not self._start.query()
        host_ms = (time.perf_counter() - begun) * 1e3
        self._end.record()
        self._synchronize()
        self._flushes = min(self._MOST_FLUSHES, 2 + int(self._MARGIN * host_ms / self._flush_ms))
        return is_ahead


def _event() -> Any:
    import torch

    return torch.cuda.Event(enable_timing=True)
