"""Watches a GPU while it is measured: clocks, power, memory errors, and who else uses it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pytest_kerneltune.guard.intruders import Guests, on_cuda, own_among
from pytest_kerneltune.guard.nvml import LIBRARY, NvmlGpu
from pytest_kerneltune.nvidia import (
    GpuProcess,
    Sample,
    disturbances,
    parse_processes,
    query_gpu,
    query_processes,
    query_sample,
    remarks,
)

_INTERVAL_S = 0.02
_SMI_INTERVAL_S = 0.2  # an answer takes 50 ms, so that at least two fit into a look at a kernel
_LISTED_EVERY = 5  # looks
_SETTLES_S, _PATIENCE_S = 0.3, 1.2  # a GPU's utilisation is a mean over a sixth of a second to a second
_STEP_S = 0.05
_SHADOW_S = 1.1  # so long a GPU may be said to be in use after its last work
_BUSY_PERCENT = 5
_POLL_S = 0.1


class Gpu(Protocol):
    """A GPU that can be asked; None stands for no answer (see ``NvmlGpu``)."""

    def sample(self) -> Sample | None: ...
    def processes(self) -> list[GpuProcess] | None: ...
    def use(self, since_us: int) -> dict[int, int] | None: ...
    def utilisation(self) -> int | None: ...
    def uncorrected_errors(self) -> int | None: ...


class SmiGpu:
    """A GPU as nvidia-smi sees it. What is asked often enough to matter is left out."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid

    def sample(self) -> Sample | None:
        return query_sample(self._uuid)

    def processes(self) -> list[GpuProcess] | None:
        text = query_processes(self._uuid)
        return None if text is None else [GpuProcess(pid, name) for pid, name in parse_processes(text).items()]

    def use(self, since_us: int) -> None:
        return None

    def utilisation(self) -> int | None:
        text = (query_gpu(("utilization.gpu",), self._uuid) or "").strip()
        return int(text) if text.isdigit() else None

    def uncorrected_errors(self) -> None:
        return None


class GpuWatch:
    """``with GpuWatch(uuid) as watch: ...``, then ``disturbances()`` and ``remarks()``.

    ``uuid`` names the GPU as nvidia-smi does (None or "": the first one). ``family`` are the processes of this run (by
    default this one), whose workers belong to it, too (see ``own_among``). ``interval_s`` lies between two looks; by
    default it suits who is asked: NVML (``library``), or nvidia-smi where that does not answer.
    """

    def __init__(
        self,
        uuid: str | None = None,
        family: Collection[int] | None = None,
        interval_s: float | None = None,
        library: str = LIBRARY,
    ) -> None:
        nvml = NvmlGpu.open(uuid or "", library)
        self._gpu: Gpu = nvml if nvml is not None and nvml.sample() is not None else SmiGpu(uuid or "")
        self._interval_s = interval_s or (_SMI_INTERVAL_S if isinstance(self._gpu, SmiGpu) else _INTERVAL_S)
        self._family = frozenset([os.getpid()] if family is None else family)
        self._samples: list[Sample] = []
        self._listed: dict[int, GpuProcess] = {}
        self._own: set[int] = set()
        self._busy: set[int] = set()
        self._still = False
        self._own_on_cuda = 0
        self._new_errors = 0
        self._errors: int | None = None
        self._answers, self._lists = True, True
        self._began_us = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._stop.clear()
        self._began_us = time.time_ns() // 1000
        self._look()
        if self._answers:
            self._errors = self._gpu.uncorrected_errors()
            self._list()
            self._thread = threading.Thread(target=self._keep_looking, daemon=True, name="kerneltune-gpu-watch")
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        self._look()
        self._list()
        self._await_stillness()
        if self._listed and not self._own:
            self._own_on_cuda = on_cuda(self._family)
        if self._errors is not None:
            self._new_errors = (self._gpu.uncorrected_errors() or 0) - self._errors

    def disturbances(self) -> list[str]:
        """What makes the measurement invalid, one line each."""
        lines = disturbances(self._samples, {})
        if self._new_errors > 0:
            lines.append(f"{self._new_errors} memory errors of the GPU that could not be corrected")
        return lines + self._guests.disturbances()

    def remarks(self) -> list[str]:
        """What the reader of the measurement should know, one line each."""
        if not self._answers:
            return ["neither NVML nor nvidia-smi answered: throttling and other processes on the GPU went unnoticed"]
        lines = remarks(self._samples)
        if not self._lists:
            return [*lines, "processes on the GPU cannot be listed: others went unnoticed"]
        return lines + self._guests.remarks()

    def wait(self, seconds: float) -> list[str]:
        """Wait until what disturbed is gone, at most ``seconds``; what was still seen then that another look might not.

        For use between two looks, while nothing of this run computes on the GPU. Where this run's processes are not in
        the driver's list, all of ``seconds`` pass, and what the GPU does then is somebody else's work.
        """
        began = time.monotonic()
        while (left := began + seconds - time.monotonic()) > 0:
            if self._own and self._is_calm():
                return []
            time.sleep(min(left, _POLL_S))
        use = None if self._own or seconds < _SHADOW_S else self._gpu.utilisation()
        if use is None or use < _BUSY_PERCENT:
            return []
        return [f"something else uses the GPU: {use}% of the time while nothing of this run does"]

    @property
    def _guests(self) -> Guests:
        return Guests(self._listed, self._own, self._busy, self._still, self._own_on_cuda)

    def _is_calm(self) -> bool:
        sample, processes = self._gpu.sample(), self._gpu.processes()
        if sample is None or processes is None:
            return True
        listed = {process.pid: process for process in processes}
        own = self._own | own_among(listed.keys(), self._family)
        now = Guests(listed, own, still=self._gpu.utilisation() == 0)
        return not disturbances([sample], {}) and not now.disturbances()

    def _keep_looking(self) -> None:
        looks = 0
        while self._answers and not self._stop.wait(self._interval_s):
            looks += 1
            self._look()
            if looks % _LISTED_EVERY == 0:
                self._list()

    def _look(self) -> None:
        if (sample := self._gpu.sample()) is None:
            self._answers = False
        else:
            self._samples.append(sample)

    def _list(self) -> None:
        found = self._gpu.processes()
        if found is None:
            self._lists = False
            return
        new = {process.pid: process for process in found if process.pid not in self._listed}
        own = own_among(new.keys(), self._family)
        if any(not Path(f"/proc/{pid}").exists() for pid in new.keys() - own):
            # It may have been this run's own and have ended since; or its id is of another namespace.
            still = {process.pid for process in self._gpu.processes() or ()}
            new = {pid: process for pid, process in new.items() if pid in own | still}
        self._listed |= new
        self._own |= own
        self._busy |= (self._gpu.use(self._began_us) or {}).keys()

    def _await_stillness(self) -> None:
        """Where others hold the GPU: see whether it stands still, now that this run's work has ended."""
        ended = time.monotonic()
        while self._guests.unclear and time.monotonic() < ended + _PATIENCE_S:
            time.sleep(_STEP_S)
            self._list()
            if (use := self._gpu.utilisation()) is None:
                return
            self._still = use == 0 and time.monotonic() > ended + _SETTLES_S
