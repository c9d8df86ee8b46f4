"""Compiles configs ahead, in parallel, in processes that never touch a GPU.

A compile past its limit costs its own process and nothing else. The limit follows what this kernel's compiles take: a
compiler that hangs on some configs holds a core for as long as a slow one may take, not for as long as is allowed.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import quantiles
from typing import Any

from pytest_kerneltune.account import Span
from pytest_kerneltune.backends import Build, CompileTask, Kernel
from pytest_kerneltune.errors import KernelError, WorkerError, WorkerTimeout
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Status, Trial
from pytest_kerneltune.worker import Reply, Service, Worker

_REASON_LIMIT = 300
_LOG_LIMIT = 4_000
_FEWEST = 10  # compiles that tell what this kernel's take
_SLOWEST_OF = 6.0  # times what nine of ten take is as good as hung
_SHORTEST_S = 6.0
_HOPELESS = 3  # so many timeouts before anything compiled shorten the limit
_HOPELESS_S = 10.0


@dataclass(frozen=True)
class Compiled:
    """What compiling a config gave: a build, or the trial that failed. ``seconds`` is wall time."""

    config: Config
    build: Build = field(default_factory=Build)
    failure: Trial | None = None
    seconds: float = 0.0
    log: str = ""


@dataclass(frozen=True)
class _Job:
    key: str
    config: Config
    task: CompileTask
    limit_s: float


class Compilation:
    """The compiling of one kernel's configs by the shared compile workers; remembers what it compiled."""

    def __init__(
        self, kernel: Kernel, space: ConfigSpace, workers: Workers, cap_s: float, spans: list[Span] | None = None
    ) -> None:
        """``cap_s`` is the longest that any compile may take; ``spans`` is told when each began and ended."""
        self._spans = [] if spans is None else spans
        self._kernel, self._space, self._workers, self._cap_s = kernel, space, workers, cap_s
        self._waiting: deque[_Job] = deque()
        self._running: dict[Worker, _Job] = {}
        self._done: list[Compiled] = []
        self._known: dict[str, Compiled] = {}
        self._service: Service | None = None
        self._seconds: list[float] = []
        self._timeouts = 0

    def add(self, config: Config, limit_s: float = math.inf) -> None:
        """Have ``config`` compiled, within ``limit_s`` seconds, unless that was done before."""
        key = config_key(self._space, config)
        known, task = self._known.get(key), None
        if known is None:
            try:
                task = self._kernel.compile_task(config)
                known = None if task else Compiled(config)
            except KernelError as error:  # this config has no code
                known = Compiled(config, failure=failed(Trial(config), Status.COMPILE_ERROR, error))
        if task is not None:
            self._waiting.append(_Job(key, config, task, limit_s))
        elif known is not None:
            self._known[key] = known
            self._done.append(known)

    def knows(self, config: Config) -> bool:
        """Whether ``config`` is compiled or will be."""
        key = config_key(self._space, config)
        return key in self._known or any(job.key == key for job in [*self._waiting, *self._running.values()])

    def known(self, config: Config) -> Compiled | None:
        """What compiling ``config`` gave, if it has been compiled."""
        return self._known.get(config_key(self._space, config))

    def feed(self, most: float) -> int:
        """Give idle workers what waits, ``most`` configs at most; how many it were."""
        fed = 0
        for worker in self._workers.compilers() if self._waiting else ():
            if self._waiting and fed < most and not worker.busy:
                fed += 1
                job = self._waiting.popleft()
                self._running[worker] = job
                limit_s = min(job.limit_s, self.limit_s)
                worker.submit(self._service_of(job.task), job.task.method, *job.task.args, timeout=limit_s)
        return fed

    def collect(self) -> list[Compiled]:
        """What has been compiled since the last call."""
        for worker, job in list(self._running.items()):
            worker.allow(min(job.limit_s, self.limit_s))
            if (reply := worker.poll()) is not None:
                del self._running[worker]
                self._spans.append((reply.began, reply.began + reply.seconds))
                self._known[job.key] = compiled = self._classified(job.config, reply)
                self._done.append(compiled)
        done, self._done = self._done, []
        return done

    @property
    def has_news(self) -> bool:
        """Whether ``collect`` has something at once."""
        return bool(self._done)

    @property
    def running(self) -> Sequence[Worker]:
        """The workers that compile."""
        return list(self._running)

    @property
    def limit_s(self) -> float:
        """Seconds that a compile may take, by what those before it took.

        A multiple of what nine of ten took that ended by themselves. (Helion counts those that were killed with the
        time they had; where one in ten hangs, that drives the limit up to the cap.)
        """
        if len(self._seconds) >= _FEWEST:
            usual_s = quantiles(self._seconds, n=10, method="inclusive")[-1]
            return min(self._cap_s, max(_SHORTEST_S, _SLOWEST_OF * usual_s))
        hopeless = self._timeouts >= _HOPELESS and not self._seconds
        return min(self._cap_s, _HOPELESS_S) if hopeless else self._cap_s

    def drop(self) -> None:
        """Forget what waits and end what runs."""
        for worker in self._running:
            worker.kill()
        self._running.clear()
        self._waiting.clear()
        self._done.clear()

    def _service_of(self, task: CompileTask) -> Service:
        service = self._service
        if service is None or (service.args is not task.target_args and service.args != task.target_args):
            service = self._service = Service(task.target, task.target_args)
        return service

    def _classified(self, config: Config, reply: Reply) -> Compiled:
        trial = Trial(config, compile_s=reply.seconds, log=reply.log[-_LOG_LIMIT:])
        if reply.error is None:
            self._seconds.append(reply.seconds)
            build = reply.value if isinstance(reply.value, Build) else Build(reply.value)
            failure = None
            if build.refused:
                failure = replace(trial, status=Status.OUT_OF_RESOURCES, reason=build.refused, **described(build))
            return Compiled(config, build, failure, reply.seconds, reply.log)
        status = Status.COMPILE_ERROR
        if isinstance(reply.error, WorkerTimeout):
            status = Status.COMPILE_TIMEOUT
            self._timeouts += 1
        return Compiled(config, Build(), failed(trial, status, reply.error), reply.seconds, reply.log)


def config_key(space: ConfigSpace, config: Config) -> str:
    """Equal for equal configs; a baseline's may be one of an older space, with other names."""
    known = config.keys() == space.parameters.keys()
    return space.key(config) if known else json.dumps(dict(config), sort_keys=True)


def described(build: Build) -> Mapping[str, Any]:
    """What a trial says of the compiled code."""
    return {"demand": build.demand, "usage": build.usage}


def failed(trial: Trial, status: Status, error: Exception) -> Trial:
    """``trial`` with how and why it failed."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    log = (error.log if isinstance(error, WorkerError) else "") or trial.log
    return replace(trial, status=status, reason=lines[0][:_REASON_LIMIT], log=log[-_LOG_LIMIT:])
