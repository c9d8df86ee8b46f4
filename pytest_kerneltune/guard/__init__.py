"""Guards a measurement: what disturbs it is seen, named, and waited for; what stays makes it worthless."""

# Rule 1, what disturbs: what hits some readings and not others, or all of today's and none of the baseline's. On a GPU
# hardware slowdowns (clock event reasons 0x8, 0x40, 0x80), memory errors, another process that computes; everywhere a
# debugger, a profiler, a setting that makes launches wait; by the wall clock a quota that stops the process.
#
# Rule 2, what is only worth a word: what arms measured in alternation share. The software power cap and the software
# thermal slowdown (0x4, 0x20) with the clocks' range, processes that hold the GPU and do nothing, a busy machine.
#
# Rule 3, another try: what comes from outside may be gone in seconds, so three more tries are made with growing pauses,
# 7.5 s in all at the most, and each pause ends when the disturbance does. A GPU needs no rest between measurements:
# pauses of one second moved medians by no more than two equal runs differ (TIRx-kernels #52). What looks on from inside
# (a debugger, a profiler, a setting) will not go away: no other try is made.
#
# Readings by themselves tell little. An H200 gives its processes slices of about 2.5 ms in turn: beside one that kept
# it busy all the time a copy's median was 83.8 us as before, and 4% of the launches took up to 2.6 ms. So who else
# computes is asked of the driver; only processes that run at the same time (by MPS) show in blocks of readings.

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from pytest_kerneltune.gpu import current_uuid
from pytest_kerneltune.guard.gpu_watch import GpuWatch
from pytest_kerneltune.guard.host_watch import HostWatch
from pytest_kerneltune.guard.intruders import family_of_run
from pytest_kerneltune.guard.tracers import attached, debug_settings, interpreter_tools, tracers
from pytest_kerneltune.record import Blocks
from pytest_kerneltune.trial import Clock

_FAR = {"copy": 1.5, "arithmetic": 2.0}  # arithmetic follows the SM clock, which a power cap may lower by a third
_FAR_SHARE = 0.1
_FEWEST_FAR = 3
_READ = re.compile(r"\([^)]*\)|\d+%")


class Watch(Protocol):
    """Watches one look of a comparison as a context manager; asked afterwards."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def disturbances(self) -> list[str]:
        """What makes this look's readings worthless, a line each."""

    def remarks(self) -> list[str]:
        """What the reader of the measurement should know, a line each."""

    @property
    def lasts(self) -> bool:
        """Whether what disturbs will still be there in some seconds."""

    def wait(self, seconds: float) -> Sequence[str]:
        """Wait until what disturbs is gone, at most ``seconds``; what else disturbs, as far as that shows only now."""


@dataclass(frozen=True)
class Retries:
    """How often a disturbed measurement is made again: after each of ``pauses_s`` (seconds, at the most)."""

    pauses_s: tuple[float, ...] = (0.5, 2.0, 5.0)

    def pause_s(self, tries: int, lasts: bool = False) -> float | None:
        """How long to wait after ``tries`` disturbed measurements (1, 2, ...); None: another one is no use.

        ``lasts`` says that what disturbs will not go away (``Guard.lasts``).
        """
        return None if lasts or tries > len(self.pauses_s) else self.pauses_s[tries - 1]


class Guard:
    """Watches one look of a comparison.

    ``clock`` is that of the kernel, ``pid`` tells which process times it (0: not yet known), ``environment`` holds the
    variables it runs with, ``gpu`` the UUID of its GPU ("": torch's current one).
    """

    def __init__(self, clock: Clock, pid: Callable[[], int], environment: Mapping[str, str], gpu: str = "") -> None:
        self._pid, self._environment = pid, environment
        self._gpu = GpuWatch(gpu or current_uuid(), family_of_run(environment)) if clock == "cuda" else None
        self._host = None if clock == "cuda" else HostWatch(clock, pid() or os.getpid())
        self._onlookers: dict[str, None] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._note_onlookers()
        for watch in (self._gpu, self._host):
            if watch is not None:
                self._stack.enter_context(watch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._note_onlookers()

    @property
    def lasts(self) -> bool:
        """Whether what disturbs will still be there in some seconds."""
        return bool(self._onlookers)

    def disturbances(self) -> list[str]:
        """See ``Watch``."""
        lines = list(self._onlookers)
        for watch in (self._gpu, self._host):
            lines += watch.disturbances() if watch is not None else []
        return lines

    def remarks(self) -> list[str]:
        """See ``Watch``."""
        lines = debug_settings(self._environment) if self._gpu is not None else []
        for watch in (self._gpu, self._host):
            lines += watch.remarks() if watch is not None else []
        return lines

    def wait(self, seconds: float) -> list[str]:
        """Wait until what disturbed is gone, at most ``seconds``, and say what else disturbs (see ``GpuWatch.wait``).

        Nothing of this run may compute on the GPU meanwhile.
        """
        if self._gpu is not None:
            return self._gpu.wait(seconds)
        if self.disturbances():
            time.sleep(seconds)
        return []

    def _note_onlookers(self) -> None:
        own, timing = os.getpid(), self._pid()
        lines = tracers(self._environment) if self._gpu is not None else []
        for pid in {own, timing} - {0}:
            lines += attached(pid)
        if self._host is not None and timing in (0, own):
            lines += interpreter_tools()
        self._onlookers |= dict.fromkeys(lines)


def distinct(remarks: Iterable[str]) -> tuple[str, ...]:
    """``remarks`` of several looks; of those that differ in what was read (in parentheses, in percent), the first."""
    found: dict[str, str] = {}
    for remark in remarks:
        found.setdefault(_READ.sub("", remark), remark)
    return tuple(found.values())


def uneven(blocks: Blocks) -> list[str]:
    """Signs in the readings themselves that something else had the device part of the time, a line each.

    The kernels of our own yardsticks always do the same, so their readings in a comparison differ by what the clocks
    do, which is less than the factors in ``_FAR``. One reading may stand out for many reasons; a tenth of all may not.
    """
    lines = []
    for name, factor in _FAR.items():
        values = sorted(blocks.get(name, ()))
        usual = values[len(values) // 4] if values else 0.0
        far = sum(1 for value in values if value > factor * usual)
        if far >= max(_FEWEST_FAR, _FAR_SHARE * len(values)):
            lines.append(
                f"something else used the GPU: {far} of {len(values)} readings of a fixed kernel ({name}) took more "
                f"than {factor:g} times as long as the quick ones"
            )
    return lines
