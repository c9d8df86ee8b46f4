"""Who runs a kernel's station: this process, or an isolated worker."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, Protocol

from pytest_kerneltune.backends import Kernel, claims
from pytest_kerneltune.errors import RemoteError, WorkerTimeout
from pytest_kerneltune.station import Station
from pytest_kerneltune.worker import Reply, Service, Worker

REFERENCE_LIMIT_S = 300.0
SHORTEST_LIMIT_S = {"wall": 2.0, "thread": 2.0, "cuda": 5.0}
_ALARM_AGAIN_S = 1.0
_NOTHING: Mapping[str, str] = MappingProxyType({})
_WITHOUT_REFERENCE = ("expect", "healthy")
_WARM_TRITON = "pytest_kerneltune.backends.toolchain:warm"
_LAUNCHERS_NEED = ("torch", "triton", _WARM_TRITON)
_COMPILERS_NEED = ("triton.compiler.compiler", "pytest_kerneltune.backends.jit", _WARM_TRITON)


class Launcher(Protocol):
    """A station, in this process or in a worker. It serves one request at a time."""

    @property
    def busy(self) -> bool:
        """Whether a request runs, or its reply has not been taken."""

    @property
    def connection(self) -> Connection | None:
        """Readable when ``poll`` may have a reply; None where it has one at once."""

    @property
    def seconds_left(self) -> float:
        """Until the running request's limit."""

    @property
    def pid(self) -> int:
        """The process that the station is in, this one unless said otherwise; 0 where there is none yet."""
        return os.getpid()

    def submit(self, method: str, *args: Any, timeout: float) -> None:
        """Start ``station.method(*args)``, which may take ``timeout`` seconds."""

    def poll(self) -> Reply | None:
        """The running request's reply, or None while it runs."""

    def restart(self) -> None:
        """Forget everything, the process included where it is not this one."""

    def call(self, method: str, *args: Any, timeout: float) -> Reply:
        """``submit``, and wait for the reply."""
        try:
            self.submit(method, *args, timeout=timeout)
            while (reply := self.poll()) is None:
                wait_for([self], self.seconds_left)
        except BaseException:  # Ctrl-C, or an alarm of somebody's: nobody will ask for this reply
            self.restart()
            raise
        return reply


class LocalLauncher(Launcher):
    """A station in this process: a request past its limit is interrupted where Python code runs (main thread only).

    A request is served while it is submitted.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._station: Station | None = None
        self._reply: Reply | None = None

    @property
    def busy(self) -> bool:
        return self._reply is not None

    @property
    def connection(self) -> None:
        return None

    @property
    def seconds_left(self) -> float:
        return 0.0

    def submit(self, method: str, *args: Any, timeout: float) -> None:
        self._reply = self._served(method, *args, timeout=timeout)

    def poll(self) -> Reply | None:
        reply, self._reply = self._reply, None
        return reply

    def restart(self) -> None:
        self._station = self._reply = None

    def _served(self, method: str, *args: Any, timeout: float) -> Reply:
        if self._station is None and method not in _WITHOUT_REFERENCE:
            expected = self._served("expect", timeout=REFERENCE_LIMIT_S)
            if expected.error is not None:
                return replace(expected, is_begun=False)
        start = time.monotonic()
        try:
            self._station = self._station or Station(self._kernel.program(), self._kernel.clock)
            with _interrupted_after(timeout) as interrupts:
                value = getattr(self._station, method)(*args)
            if interrupts:  # and all of them caught by the kernel
                raise _LimitReached
            return Reply(value, seconds=time.monotonic() - start, began=start)
        except _LimitReached:
            error = WorkerTimeout(f"no answer within {timeout:.3g} s")
            return Reply(error=error, seconds=time.monotonic() - start, began=start)
        except (Exception, SystemExit) as error:  # whatever the user's callable raises fails this config only
            log = traceback.format_exc(limit=-4)
            failure = RemoteError(type(error).__name__, str(error), log)
            return Reply(error=failure, log=log, seconds=time.monotonic() - start, began=start)


class RemoteLauncher(Launcher):
    """A station in an isolated worker, which is replaced when it dies or its device stops answering."""

    def __init__(self, kernel: Kernel, worker: Worker, modules: Sequence[Any]) -> None:
        self._worker, self._clock = worker, kernel.clock
        self._service = Service("pytest_kerneltune.station:Station", (kernel.packed(modules), kernel.clock))
        self._request: Generator[None, None, Reply] | None = None

    @property
    def busy(self) -> bool:
        return self._request is not None

    @property
    def connection(self) -> Connection:
        return self._worker.connection

    @property
    def seconds_left(self) -> float:
        return self._worker.seconds_left

    @property
    def pid(self) -> int:
        return self._worker.pid

    def submit(self, method: str, *args: Any, timeout: float) -> None:
        assert self._request is None, "a launcher serves one request at a time"
        if self._worker.busy:  # for another kernel's launcher, which will never ask for the reply
            self._worker.kill()
        self._request = self._served(method, *args, timeout=timeout)
        next(self._request)

    def poll(self) -> Reply | None:
        assert self._request is not None
        try:
            next(self._request)
        except StopIteration as end:
            self._request = None
            reply: Reply = end.value
            return reply
        return None

    def restart(self) -> None:
        self._request = None
        self._worker.kill()

    def _served(self, method: str, *args: Any, timeout: float) -> Generator[None, None, Reply]:
        if not self._worker.holds(self._service) and method not in _WITHOUT_REFERENCE:
            # A new process runs the reference anew, which may take longer than a config may.
            expected = yield from self._exchanged("expect", timeout=REFERENCE_LIMIT_S)
            if expected.error is not None:
                return replace(expected, is_begun=False)
        reply = yield from self._exchanged(method, *args, timeout=timeout)
        if isinstance(reply.error, RemoteError) and self._clock == "cuda" and method != "healthy":
            health = yield from self._exchanged("healthy", timeout=SHORTEST_LIMIT_S["cuda"])
            if health.error is not None:
                self._worker.kill()
        return reply

    def _exchanged(self, method: str, *args: Any, timeout: float) -> Generator[None, None, Reply]:
        self._worker.submit(self._service, method, *args, timeout=timeout)
        yield
        while (reply := self._worker.poll()) is None:
            yield
        return reply


def wait_for(launchers: Iterable[Launcher | Worker], timeout: float) -> None:
    """Return when one of ``launchers``, all of them busy, has news or is past its limit, at the latest after
    ``timeout`` seconds."""
    waited = list(launchers)
    connections = [w.connection for w in waited]
    if all(c is not None for c in connections):
        wait([c for c in connections if c is not None], max(0.0, min([timeout, *(w.seconds_left for w in waited)])))


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

    def launcher(self, kernel: Kernel, modules: Sequence[Any], env: Mapping[str, str] = _NOTHING) -> Launcher:
        """A launcher of ``kernel``; ``env`` is environment of its process besides the kernel's own."""
        if not kernel.isolated:
            return LocalLauncher(kernel)
        return RemoteLauncher(kernel, self._launching({**kernel.launch_env(), **env}), modules)

    def warm(self, envs: Iterable[Mapping[str, str]]) -> None:
        """Get the processes ready that Triton kernels need, a launcher for each of ``envs``; does not wait for them."""
        for env in envs:
            self._launching(env).start(_LAUNCHERS_NEED)
        for worker in self.compilers():
            worker.start(_COMPILERS_NEED)

    def forget_claims(self) -> None:
        """Have what was given up by compilers that were killed compiled again."""
        if self._scratch is not None:
            for folder in Path(self._scratch.name).glob(f"{claims.FOLDER}*"):
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        for worker in [*self._compilers, *self._launchers.values()]:
            worker.close()
        self._compilers.clear()
        self._launchers.clear()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _launching(self, env: Mapping[str, str]) -> Worker:
        return self._launchers.setdefault(tuple(sorted(env.items())), Worker(env))


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
