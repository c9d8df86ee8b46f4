"""Compile -> check -> time: configs in, trials out.

Configs are compiled in parallel worker processes; each is checked against the reference and timed by the kernel's
station (``station.py``) under the device's lock. On a GPU a config is timed while others still compile; on host clocks
a handful is compiled, then timed, then the next, since compilers on the same cores would disturb the readings.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.errors import KernelError, RemoteError, WorkerCrash, WorkerError, WorkerTimeout
from pytest_kerneltune.launcher import REFERENCE_LIMIT_S, SHORTEST_LIMIT_S, Workers
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.timing import summarise
from pytest_kerneltune.trial import Config, Status, Trial
from pytest_kerneltune.worker import Reply, Service, Worker, wait_any

_REASON_LIMIT = 300
_LOG_LIMIT = 4_000
_SLOWEST = 50.0  # a config this many times slower than the quickest one so far is as good as hung
_HOPELESS = 3  # so many timeouts before anything worked shorten the limit
_HOPELESS_COMPILE_S = 10.0
_HANDFUL = 4  # configs a compile worker, on host clocks


@dataclass(frozen=True)
class Limits:
    """Seconds that compiling one config, and checking and timing one config, may take."""

    compile_s: float = 60.0
    run_s: float = 30.0


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
        self._timeouts = self._compile_timeouts = 0
        self._has_compiled = False

    def start(self) -> str:
        """Run the reference where the kernel will run; the timing method. Raises KernelError if it fails."""
        with self._lock():
            reply = self._launcher.call("expect", timeout=max(self._limits.run_s, REFERENCE_LIMIT_S))
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
        with contextlib.closing(self._ready(configs, deadline, compile_s)) as ready:
            for compiled in ready:
                trial = compiled.failure or self._check_and_time(compiled, best_ms)
                best_ms = min(best_ms, trial.latency_ms)
                found[self._key(compiled.config)] = trial
                done(trial)
                if time.monotonic() > deadline:
                    break
        return [found[key] for key in map(self._key, configs) if key in found]

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
            reply = self._launcher.call("compare", ready, yardsticks, blocks, timeout=REFERENCE_LIMIT_S * 4)
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

    def _key(self, config: Config) -> str:
        """Equal for equal configs; a baseline's may be one of an older space, with other names."""
        known = config.keys() == self._space.parameters.keys()
        return self._space.key(config) if known else json.dumps(dict(config), sort_keys=True)

    def _ready(self, configs: Sequence[Config], deadline: float, compile_s: float | None) -> Generator[Compiled]:
        size = len(configs) if self.kernel.clock == "cuda" else _HANDFUL * self._workers.jobs
        for start in range(0, len(configs), max(1, size)):
            if start == 0 or time.monotonic() <= deadline:
                yield from self._compile(configs[start : start + size], deadline, compile_s)

    def _compile(
        self, configs: Sequence[Config], deadline: float = math.inf, compile_s: float | None = None
    ) -> Iterator[Compiled]:
        """Compiled configs, in the order in which they get ready (GPU), or all at the end (host clocks)."""
        waiting: deque[tuple[Config, Any]] = deque()
        finished: deque[Compiled] = deque()
        for config in configs:
            key = self._key(config)
            if key not in self._compiled and (task := self.kernel.compile_task(config)) is not None:
                waiting.append((config, task))
            else:
                finished.append(self._compiled.get(key) or Compiled(config))
        limit = compile_s or math.inf
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

    def _feed(self, waiting: deque[tuple[Config, Any]], running: dict[Worker, Config], limit: float) -> None:
        for worker in self._workers.compilers() if waiting else ():
            if waiting and not worker.busy:
                config, task = waiting.popleft()
                if self._service is None or self._service.args is not task.target_args:
                    same = self._service is not None and self._service.args == task.target_args
                    self._service = self._service if same else Service(task.target, task.target_args)
                assert self._service is not None
                worker.submit(self._service, task.method, *task.args, timeout=min(limit, self._compile_limit()))
                running[worker] = config

    def _collect(self, running: dict[Worker, Config]) -> Iterator[Compiled]:
        for worker in list(running):
            if (reply := worker.poll()) is not None:
                config = running.pop(worker)
                compiled = self._classify(config, reply)
                self._compiled[self._key(config)] = compiled
                yield compiled

    def _classify(self, config: Config, reply: Reply) -> Compiled:
        if reply.error is None:
            self._has_compiled = True
            return Compiled(config, reply.value, seconds=reply.seconds, log=reply.log)
        status = Status.COMPILE_ERROR
        if isinstance(reply.error, WorkerTimeout):
            status = Status.COMPILE_TIMEOUT
            self._compile_timeouts += 1
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
        return reply

    def _compile_limit(self) -> float:
        hopeless = self._compile_timeouts >= _HOPELESS and not self._has_compiled
        return min(self._limits.compile_s, _HOPELESS_COMPILE_S) if hopeless else self._limits.compile_s

    def _run_limit(self) -> float:
        shortest = SHORTEST_LIMIT_S[self.kernel.clock]
        if math.isinf(self._quickest_s):
            return self._limits.run_s if self._timeouts < _HOPELESS else min(shortest, self._limits.run_s)
        return min(self._limits.run_s, max(shortest, _SLOWEST * self._quickest_s))

    def _trial(self, compiled: Compiled, reply: Reply, wrong: str | None) -> Trial:
        log = "\n".join(text for text in (compiled.log, reply.log) if text)
        trial = Trial(compiled.config, log=log[-_LOG_LIMIT:], compile_s=compiled.seconds, measure_s=reply.seconds)
        if reply.error is not None:
            return _failed(trial, _run_status(reply.error), reply.error)
        if wrong is not None:
            return replace(trial, status=Status.WRONG, reason=f"output {wrong}")
        self._quickest_s = min(self._quickest_s, reply.seconds)  # of the right ones: a wrong one may do too little
        return trial


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
