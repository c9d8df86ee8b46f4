"""Whose processes are on a GPU: this run's, and others that make its readings worthless."""

# In a container the driver speaks of processes by ids of the host, or leaves out whose ids mean nothing there. Then
# this run's own are not in its list by the ids that they know themselves by, and only their number can be compared:
# who computes with CUDA has /dev/nvidia-uvm open, which asking NVML or nvidia-smi does not do.

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from pytest_kerneltune.nvidia import GpuProcess, lineage, shared_by

_MPS_SERVER = "nvidia-cuda-mps-server"  # it computes for its clients, who are in the list themselves
_PROC = Path("/proc")
_PACKAGE = __name__.partition(".")[0].encode()


@dataclass(frozen=True)
class Guests:
    """Who was seen on a GPU while it was measured.

    ``listed`` is everybody by process id, ``own`` the ids of this run's processes among them. ``busy`` are
    those that the driver saw at work, which it does not always. ``still`` says that the GPU had nothing to do once this
    run's work had ended. ``own_on_cuda`` is how many processes of this run use CUDA, on whatever GPU (0: not known).
    """

    listed: Mapping[int, GpuProcess]
    own: Collection[int]
    busy: Collection[int] = ()
    still: bool = False
    own_on_cuda: int = 0

    def disturbances(self) -> list[str]:
        """Who may have slowed this run's kernels, a line each."""
        if self.own:
            return [shared_by(p.pid, p.name) for p in self._foreign if not self._elsewhere(p) and not self._idle(p)]
        if 0 < self.own_on_cuda < len(self._users):
            return [f"{len(self._users)} processes use the same GPU, and {self.own_on_cuda} of this run use one"]
        return []

    def remarks(self) -> list[str]:
        """Who is there and does no harm, and what cannot be known."""
        if not self.listed:
            return ["the driver lists no process on the GPU, not even this run's: others went unnoticed"]
        if not self.own:
            told = "other processes on the GPU cannot be told from this run's (process ids of another namespace)"
            return [] if self.disturbances() else [told]
        lines = []
        for process in self._foreign:
            name = f"process {process.pid} ({process.name or 'of unknown name'})"
            if self._elsewhere(process):
                lines.append(f"{name} uses another part of the same GPU")
            elif self._idle(process):
                lines.append(f"{name} holds the same GPU, idle")
        return lines

    @property
    def unclear(self) -> bool:
        """Whether all others that are there may be idle, and the GPU must stand still to tell."""
        strangers = [process.pid for process in self._foreign if not self._elsewhere(process)]
        return bool(self.own and strangers) and not self.still and not any(pid in self.busy for pid in strangers)

    @property
    def _users(self) -> list[GpuProcess]:
        found = [process for _, process in sorted(self.listed.items())]
        return [process for process in found if not process.name.endswith(_MPS_SERVER)]

    @property
    def _foreign(self) -> list[GpuProcess]:
        return [process for process in self._users if process.pid not in self.own]

    def _idle(self, process: GpuProcess) -> bool:
        return self.still and process.pid not in self.busy

    def _elsewhere(self, process: GpuProcess) -> bool:
        parts = {self.listed[pid].part for pid in self.own if pid in self.listed}
        return process.part is not None and None not in parts and process.part not in parts


def family_of_run(environment: Mapping[str, str]) -> frozenset[int]:
    """This process, and under pytest-xdist the one that started it and its siblings."""
    return frozenset([os.getpid(), *([os.getppid()] if "PYTEST_XDIST_WORKER" in environment else [])])


def own_among(pids: Collection[int], family: Collection[int]) -> set[int]:
    """Those of ``pids`` that are in ``family``, or descend from one that is as this package's processes do.

    What else the user's code started in this run is a stranger: its work on a GPU disturbs as anybody's does.
    """
    return {pid for pid in pids if _is_own(lineage(pid), family)}


def on_cuda(family: Collection[int], proc: Path = _PROC) -> int:
    """How many processes of ``family`` and their descendants use CUDA; 0 where that cannot be seen."""
    pids = [int(folder.name) for folder in proc.iterdir() if folder.name.isdigit()] if proc.is_dir() else []
    return sum(1 for pid in pids if _uses_cuda(proc / str(pid) / "fd") and own_among([pid], family))


def _is_own(line: Sequence[int], family: Collection[int]) -> bool:
    descent = list(takewhile(lambda pid: pid not in family, line))
    return len(descent) < len(line) and (not descent or any(map(_is_of_package, descent)))


def _is_of_package(pid: int) -> bool:
    """Whether it runs a module of this package, or what this process runs (as pytest-xdist's workers do)."""
    command = _command(pid)
    return _PACKAGE in command or command == _command(os.getpid())


def _command(pid: int) -> bytes:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def _uses_cuda(descriptors: Path) -> bool:
    try:
        return any(str(entry.readlink()) == "/dev/nvidia-uvm" for entry in descriptors.iterdir())
    except OSError:  # it ended, or is somebody else's
        return False
