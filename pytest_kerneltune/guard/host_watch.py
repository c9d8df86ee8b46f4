"""Watches this machine's processors while a kernel is timed on a host clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_kerneltune.trial import Clock

_WAITED = 0.2  # of the time: who waits less for a processor still has most readings to itself
_FOLLOWS_THE_LOAD = ("powersave", "ondemand", "conservative", "schedutil", "interactive")


@dataclass(frozen=True)
class Machine:
    """Where a machine says how its processors fare; what is not there is not known."""

    proc: Path = Path("/proc")
    groups: Path = Path("/sys/fs/cgroup")
    processors: Path = Path("/sys/devices/system/cpu")

    def times_throttled(self) -> int:
        """How often a limit on this process's container, or one around it, has stopped it for a while so far."""
        return max((_value(folder / "cpu.stat", "nr_throttled") for folder in self._own_groups()), default=0)

    def waited_s(self, pid: int) -> float:
        """Seconds that the first thread of process ``pid`` was ready to run so far and had no processor."""
        words = _text(self.proc / str(pid) / "schedstat").split()
        return int(words[1]) / 1e9 if len(words) == 3 and words[1].isdigit() else 0.0

    def governors(self) -> set[str]:
        """How the processors' clock frequencies are chosen."""
        found = {_text(path).strip() for path in self.processors.glob("cpu[0-9]*/cpufreq/scaling_governor")}
        return found - {""}

    def _own_groups(self) -> Iterator[Path]:
        """The control groups (of version 1 or 2) that limit this process's time, from the inmost outwards.

        In a container the path that the kernel names may not be there: then the group is what is mounted.
        """
        for line in _text(self.proc / "self" / "cgroup").splitlines():
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            names = controllers.split(",")
            if not (controllers == "" or "cpu" in names):
                continue
            for root in {self.groups / controllers, *(self.groups / name for name in names)}:
                inmost = root / path.lstrip("/")
                yield from (folder for folder in (inmost, *inmost.parents) if folder.is_relative_to(root))


@dataclass
class HostWatch:
    """``with HostWatch(clock, pid) as watch: ...``, then ``disturbances()`` and ``remarks()``.

    Thread CPU time does not count what a process waits for, so that on this clock it is no disturbance.
    """

    clock: Clock
    pid: int
    machine: Machine = field(default_factory=Machine)
    throttled: int = 0
    waited_s: float = 0.0
    elapsed_s: float = 0.0

    def __enter__(self) -> Self:
        self.throttled = -self.machine.times_throttled()
        self.waited_s = -self.machine.waited_s(self.pid)
        self.elapsed_s = -time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.throttled += self.machine.times_throttled()
        self.waited_s += self.machine.waited_s(self.pid)
        self.elapsed_s += time.monotonic()

    def disturbances(self) -> list[str]:
        """What makes the measurement invalid, one line each."""
        return self._stopped() if self.clock == "wall" else []

    def remarks(self) -> list[str]:
        """What the reader of the measurement should know, one line each."""
        lines = [] if self.clock == "wall" else self._stopped()
        if self.waited_s > _WAITED * self.elapsed_s > 0:
            share = min(1.0, self.waited_s / self.elapsed_s)
            lines.append(f"the machine is busy: the kernel's process waited for a processor {share:.0%} of the time")
        if following := sorted(self.machine.governors().intersection(_FOLLOWS_THE_LOAD)):
            lines.append(f"the processors' clocks follow their load (frequency governor {', '.join(following)})")
        return lines

    def _stopped(self) -> list[str]:
        if self.throttled <= 0:
            return []
        return [f"the container's CPU quota stopped this process {self.throttled} times: give it more processor time"]


def _value(path: Path, name: str) -> int:
    """The number behind ``name`` in a file of names and numbers; 0 where it is not there."""
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
