"""Compile -> check -> time: configs in, trials out.

Configs are compiled in parallel worker processes; each is checked against the reference and timed by the kernel's
station (``station.py``) under the device's lock. On a GPU a config is timed while others still compile; on host clocks
all of a batch is compiled first, since compilers on the same cores would disturb the readings.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Protocol

from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.errors import KernelError, RemoteError, WorkerCrash, WorkerError, WorkerTimeout
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.station import Station
from pytest_kerneltune.timing import summarise
from pytest_kerneltune.trial import Config, Status, Trial
from pytest_kerneltune.worker import Reply, Service, Worker, wait_any

_REASON_LIMIT = 300
_LOG_LIMIT = 4_000
_SLOWEST = 50.0  # a config this many times slower than the quickest one so far is as good as hung
_SHORTEST_LIMIT_S = {"wall": 2.0, "thread": 2.0, "cuda": 5.0}
_HOPELESS = 3  # so many timeouts before anything worked shorten the limit
_REFERENCE_LIMIT_S = 300.0


@dataclass(frozen=True)
class Limits:
    """Seconds that compiling one config, and checking and timing one config, may take."""

    compile_s: float = 60.0
    run_s: float = 30.0


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
        start = time.monotonic()
        try:
            self._station = self._station or Station(self._kernel.program(), self._kernel.clock)
            with _interrupted_after(timeout):
                return Reply(getattr(self._station, method)(*args), seconds=time.monotonic() - start)
        except _LimitReached:
            return Reply(error=WorkerTimeout(f"no answer within {timeout:.3g} s"))
        except (Exception, SystemExit) as error:  # whatever the user's callable raises fails this config only
            log = traceback.format_exc(limit=-4)
            return Reply(error=RemoteError(type(error).__name__, str(error), log), log=log)

    def restart(self) -> None:
        self._station = None


class RemoteLauncher:
    """A station in an isolated worker, which is replaced when it dies or its device stops answering."""

    def __init__(self, kernel: Kernel, worker: Worker, modules: Sequence[Any]) -> None:
        self._worker, self._clock = worker, kernel.clock
        self._service = Service("pytest_kerneltune.station:Station", (kernel.packed(modules), kernel.clock))

    def call(self, method: str, *args: Any, timeout: float) -> Reply:
        reply = self._worker.call(self._service, method, *args, timeout=timeout)
        if isinstance(reply.error, RemoteError) and self._clock == "cuda" and method != "healthy":
            health = self._worker.call(self._service, "healthy", timeout=_SHORTEST_LIMIT_S["cuda"])
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

    def compilers(self) -> list[Worker]:
        if not self._compilers:
            self._compilers = [Worker(keep=4) for _ in range(self.jobs)]
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


@dataclass(frozen=True)
class Compiled:
    """What compiling a config gave: an artifact, or the trial that failed."""

    config: Config
    artifact: Any = None
    failure: Trial | None = None
    seconds: float = 0.0
    log: str = ""


class Benchmark:
    """Measures configs of one kernel. ``lock()`` is held while its device is timed."""

    def __init__(
        self,
        kernel: Kernel,
        space: ConfigSpace,
        workers: Workers,
        limits: Limits,
        lock: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
        modules: Sequence[Any] = (),
    ) -> None:
        self.kernel = kernel
        self._space, self._workers, self._limits, self._lock = space, workers, limits, lock
        self._launcher = workers.launcher(kernel, modules)
        self._compiled: dict[str, Compiled] = {}
        self._service: Service | None = None
        self._quickest_s = math.inf
        self._timeouts = 0

    def start(self) -> str:
        """Run the reference where the kernel will run; the timing method. Raises KernelError if it fails."""
        with self._lock():
            reply = self._launcher.call("expect", timeout=max(self._limits.run_s, _REFERENCE_LIMIT_S))
        if reply.error is not None:
            hint = f"\n{reply.error.log}" if reply.error.log else ""
            raise KernelError(f"the kernel cannot be set up, or its reference failed: {reply.error}{hint}")
        return str(reply.value)

    def measure(
        self,
        configs: Sequence[Config],
        best_ms: float = math.inf,
        deadline: float = math.inf,
        done: Callable[[Trial], None] = lambda _: None,
        compile_s: float | None = None,
    ) -> list[Trial]:
        """One trial a config, in the order of ``configs``; configs not reached by ``deadline`` (monotonic s) are left
        out. ``done`` is called with each trial as soon as it is known; ``best_ms`` is the best latency so far,
        ``compile_s`` a shorter limit for compiling than usual."""
        found: dict[str, Trial] = {}
        for compiled in self._compile(configs, deadline, compile_s):
            trial = compiled.failure or self._check_and_time(compiled, best_ms)
            best_ms = min(best_ms, trial.latency_ms)
            found[self._space.key(compiled.config)] = trial
            done(trial)
            if time.monotonic() > deadline:
                break
        return [found[key] for key in map(self._space.key, configs) if key in found]

    def check(self, config: Config) -> Trial:
        """Compile ``config``, run it once and compare it with the reference; not timed (latency inf, even if OK)."""
        compiled = next(self._compile([config]))
        if compiled.failure is not None:
            return compiled.failure
        reply = self._call("check", config, compiled.artifact)
        return self._trial(compiled, reply, reply.value)

    def compare(self, arms: Mapping[str, Config], yardsticks: bool, blocks: int) -> dict[str, list[float]]:
        """Interleaved block values in ms of several configs (see Station.compare). Raises KernelError on failure."""
        ready = {}
        for name, config in arms.items():
            compiled = next(self._compile([config]))
            if compiled.failure is not None:
                raise KernelError(f"{name} ({dict(config)}): {compiled.failure.reason}")
            ready[name] = (config, compiled.artifact)
        with self._lock():
            reply = self._launcher.call("compare", ready, yardsticks, blocks, timeout=_REFERENCE_LIMIT_S * 4)
        if reply.error is not None:
            raise KernelError(f"the comparison failed: {reply.error}")
        values: dict[str, list[float]] = reply.value
        return values

    def restart(self) -> None:
        """Run what follows in a fresh process (plain callables: with nothing kept)."""
        self._launcher.restart()

    def artifact(self, config: Config) -> Any:
        """What compiling ``config`` gave (None where nothing is compiled); raises KernelError if that failed."""
        compiled = next(self._compile([config]))
        if compiled.failure is not None:
            raise KernelError(compiled.failure.reason)
        return compiled.artifact

    def _compile(
        self, configs: Sequence[Config], deadline: float = math.inf, compile_s: float | None = None
    ) -> Iterator[Compiled]:
        """Compiled configs, in the order in which they get ready (GPU), or all at the end (host clocks)."""
        waiting: deque[tuple[Config, Any]] = deque()
        finished: deque[Compiled] = deque()
        for config in configs:
            key = self._space.key(config)
            if key not in self._compiled and (task := self.kernel.compile_task(config)) is not None:
                waiting.append((config, task))
            else:
                finished.append(self._compiled.get(key) or Compiled(config))
        limit = min(self._limits.compile_s, compile_s or math.inf)
        running: dict[Worker, Config] = {}
        overlap = self.kernel.clock == "cuda"
        try:
            while waiting or running or finished:
                self._feed(waiting, running, limit)
                if finished and (overlap or not running):
                    yield finished.popleft()
                elif time.monotonic() > deadline:
                    return
                else:
                    wait_any(list(running), min(1.0, max(0.0, deadline - time.monotonic())))
                finished.extend(self._collect(running))
        finally:
            for worker in running:  # past the deadline, or not wanted any more
                worker.kill()
                worker.busy = False

    def _feed(self, waiting: deque[tuple[Config, Any]], running: dict[Worker, Config], limit: float) -> None:
        for worker in self._workers.compilers() if waiting else ():
            if waiting and not worker.busy:
                config, task = waiting.popleft()
                if self._service is None or self._service.args is not task.target_args:
                    same = self._service is not None and self._service.args == task.target_args
                    self._service = self._service if same else Service(task.target, task.target_args)
                assert self._service is not None
                worker.submit(self._service, task.method, *task.args, timeout=limit)
                running[worker] = config

    def _collect(self, running: dict[Worker, Config]) -> Iterator[Compiled]:
        for worker in list(running):
            if (reply := worker.poll()) is not None:
                config = running.pop(worker)
                compiled = self._classify(config, reply)
                self._compiled[self._space.key(config)] = compiled
                yield compiled

    def _classify(self, config: Config, reply: Reply) -> Compiled:
        if reply.error is None:
            return Compiled(config, reply.value, seconds=reply.seconds, log=reply.log)
        status = Status.COMPILE_TIMEOUT if isinstance(reply.error, WorkerTimeout) else Status.COMPILE_ERROR
        if isinstance(reply.error, RemoteError) and reply.error.kind == "OutOfResources":
            status = Status.OUT_OF_RESOURCES
        failure = _failed(Trial(config, compile_s=reply.seconds), status, reply.error)
        return Compiled(config, failure=failure, seconds=reply.seconds, log=reply.log)

    def _check_and_time(self, compiled: Compiled, best_ms: float) -> Trial:
        reply = self._call("check_and_time", compiled.config, compiled.artifact, best_ms)
        wrong, readings = reply.value or (None, [])
        trial = self._trial(compiled, reply, wrong)
        if not trial.ok:
            return trial
        latency = summarise(self.kernel.clock, readings)
        return replace(trial, latency_ms=latency, samples_ms=tuple(readings))

    def _call(self, method: str, *args: Any) -> Reply:
        with self._lock():
            reply = self._launcher.call(method, *args, timeout=self._run_limit())
        if isinstance(reply.error, WorkerTimeout):
            self._timeouts += 1
        elif reply.error is None:
            self._quickest_s = min(self._quickest_s, reply.seconds)
        return reply

    def _run_limit(self) -> float:
        shortest = _SHORTEST_LIMIT_S[self.kernel.clock]
        if math.isinf(self._quickest_s):
            return self._limits.run_s if self._timeouts < _HOPELESS else min(shortest, self._limits.run_s)
        return min(self._limits.run_s, max(shortest, _SLOWEST * self._quickest_s))

    def _trial(self, compiled: Compiled, reply: Reply, wrong: str | None) -> Trial:
        log = "\n".join(text for text in (compiled.log, reply.log) if text)
        trial = Trial(compiled.config, log=log[-_LOG_LIMIT:], compile_s=compiled.seconds, measure_s=reply.seconds)
        if reply.error is not None:
            return _failed(trial, _run_status(reply.error), reply.error)
        return replace(trial, status=Status.WRONG, reason=f"output {wrong}") if wrong is not None else trial


def _run_status(error: WorkerError) -> Status:
    if isinstance(error, WorkerTimeout):
        return Status.RUN_TIMEOUT
    if isinstance(error, WorkerCrash):
        return Status.CRASH
    resources = isinstance(error, RemoteError) and error.kind in ("OutOfResources", "OutOfMemoryError")
    return Status.OUT_OF_RESOURCES if resources else Status.RUNTIME_ERROR


def _failed(trial: Trial, status: Status, error: WorkerError) -> Trial:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return replace(trial, status=status, reason=lines[0][:_REASON_LIMIT], log=(error.log or trial.log)[-_LOG_LIMIT:])


class _LimitReached(Exception):
    pass


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Raise _LimitReached in the body after ``seconds``, where this thread may set the alarm and nobody else has."""
    mine = threading.current_thread() is threading.main_thread() and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    if not mine or signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
        yield
        return

    def stop(*_: int | FrameType | None) -> None:
        raise _LimitReached

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
