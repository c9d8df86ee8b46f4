"""Who runs a kernel's station: this process, or an isolated worker."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.errors import RemoteError, WorkerTimeout
from pytest_kerneltune.station import Station
from pytest_kerneltune.worker import Reply, Service, Worker

REFERENCE_LIMIT_S = 300.0
SHORTEST_LIMIT_S = {"wall": 2.0, "thread": 2.0, "cuda": 5.0}
_ALARM_AGAIN_S = 1.0


class Launcher(Protocol):
    """A station, in this process or in a worker."""

    def call(self, method: str, *args: Any, timeout: float) -> Reply: ...
    def restart(self) -> None:
        """Forget everything, the process included where it is not this one."""


class LocalLauncher:
    """A station in this process: a request past its limit is interrupted where Python code runs (main thread only)."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._station: Station | None = None

    def call(self, method: str, *args: Any, timeout: float) -> Reply:
        if self._station is None and method != "expect":
            expected = self.call("expect", timeout=REFERENCE_LIMIT_S)
            if expected.error is not None:
                return expected
        start = time.monotonic()
        try:
            self._station = self._station or Station(self._kernel.program(), self._kernel.clock)
            with _interrupted_after(timeout) as interrupts:
                value = getattr(self._station, method)(*args)
            if interrupts:  # and all of them caught by the kernel
                raise _LimitReached
            return Reply(value, seconds=time.monotonic() - start)
        except _LimitReached:
            error = WorkerTimeout(f"no answer within {timeout:.3g} s")
            return Reply(error=error, seconds=time.monotonic() - start)
        except (Exception, SystemExit) as error:  # whatever the user's callable raises fails this config only
            log = traceback.format_exc(limit=-4)
            failure = RemoteError(type(error).__name__, str(error), log)
            return Reply(error=failure, log=log, seconds=time.monotonic() - start)

    def restart(self) -> None:
        self._station = None


class RemoteLauncher:
    """A station in an isolated worker, which is replaced when it dies or its device stops answering."""

    def __init__(self, kernel: Kernel, worker: Worker, modules: Sequence[Any]) -> None:
        self._worker, self._clock = worker, kernel.clock
        self._service = Service("pytest_kerneltune.station:Station", (kernel.packed(modules), kernel.clock))

    def call(self, method: str, *args: Any, timeout: float) -> Reply:
        if not self._worker.holds(self._service) and method != "expect":
            # A new process runs the reference anew, which may take longer than a config may.
            expected = self._worker.call(self._service, "expect", timeout=REFERENCE_LIMIT_S)
            if expected.error is not None:
                return expected
        reply = self._worker.call(self._service, method, *args, timeout=timeout)
        if isinstance(reply.error, RemoteError) and self._clock == "cuda" and method != "healthy":
            health = self._worker.call(self._service, "healthy", timeout=SHORTEST_LIMIT_S["cuda"])
            if health.error is not None:
                self._worker.kill()
        return reply

    def restart(self) -> None:
        self._worker.kill()


@dataclass
class Workers:
    """The processes that all kernels of a run share: ``jobs`` compilers, and a launcher per environment."""

    jobs: int
    _compilers: list[Worker] = field(default_factory=list)
    _launchers: dict[tuple[tuple[str, str], ...], Worker] = field(default_factory=dict)
    _scratch: tempfile.TemporaryDirectory[str] | None = None

    def compilers(self) -> list[Worker]:
        if not self._compilers:
            # A compiler that is killed leaves its temporary files behind.
            self._scratch = tempfile.TemporaryDirectory(prefix="kerneltune-", ignore_cleanup_errors=True)
            self._compilers = [Worker({"TMPDIR": self._scratch.name}, keep=4) for _ in range(self.jobs)]
        return self._compilers

    def launcher(self, kernel: Kernel, modules: Sequence[Any]) -> Launcher:
        if not kernel.isolated:
            return LocalLauncher(kernel)
        env = dict(kernel.launch_env())
        worker = self._launchers.setdefault(tuple(sorted(env.items())), Worker(env))
        return RemoteLauncher(kernel, worker, modules)

    def close(self) -> None:
        for worker in [*self._compilers, *self._launchers.values()]:
            worker.close()
        self._compilers.clear()
        self._launchers.clear()
        if self._scratch is not None:
            self._scratch.cleanup()


class _LimitReached(BaseException):
    """No Exception, which a kernel may catch."""


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[list[int]]:
    """Raise _LimitReached in the body after ``seconds``, where this thread may set the alarm and nobody else has.

    What it yields lists the interrupts.
    """
    interrupts: list[int] = []
    mine = threading.current_thread() is threading.main_thread() and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    if not mine or signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
        yield interrupts
        return

    def stop(number: int, _: FrameType | None) -> None:
        interrupts.append(number)
        raise _LimitReached

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, _ALARM_AGAIN_S)  # again, for who catches everything
    try:
        try:
            yield interrupts
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # also where the alarm rang on the way out
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
