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
from pytest_kerneltune.backends.claims import BeingMade, GivenUp
from pytest_kerneltune.errors import KernelError, RemoteError, WorkerError, WorkerTimeout
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
    for_check: bool


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
        self._parked: dict[int, list[_Job]] = {}  # by the process that compiles the same code for another config
        self._done: list[Compiled] = []
        self._known: dict[str, Compiled] = {}
        self._service: Service | None = None
        self._seconds: list[float] = []
        self._timeouts = 0
        self._limit_s = cap_s

    def add(self, config: Config, limit_s: float = math.inf, for_check: bool = False) -> None:
        """Have ``config`` compiled, within ``limit_s`` seconds, unless that was done before.

        Where that is ``for_check`` it may take as long as any compile may, also if it was killed earlier in less time;
        and ``collect`` does not tell of it.
        """
        key = config_key(self._space, config)
        if for_check and self._was_cut_short(key):
            del self._known[key]
            self._workers.forget_claims()
        known, task = self._known.get(key), None
        if known is None:
            try:
                task = self._kernel.compile_task(config)
                known = None if task else Compiled(config)
            except KernelError as error:  # this config has no code
                known = Compiled(config, failure=failed(Trial(config), Status.COMPILE_ERROR, error))
        if task is not None:
            self._waiting.append(_Job(key, config, task, limit_s, for_check))
        elif known is not None:
            self._known[key] = known
            if not for_check:
                self._done.append(known)

    def knows(self, config: Config) -> bool:
        """Whether ``config`` is compiled or will be; one that had less time than a compile may take is not known."""
        key = config_key(self._space, config)
        if key in self._known:
            return not self._was_cut_short(key)
        parked = (job for jobs in self._parked.values() for job in jobs)
        return any(job.key == key for job in (*self._waiting, *self._running.values(), *parked))

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
                task = job.task
                worker.submit(self._service_of(task), task.method, *task.args, timeout=self._limit_of(job))
        return fed

    def collect(self) -> list[Compiled]:
        """What has been compiled since the last call, once for each ``add``."""
        for worker, job in list(self._running.items()):
            worker.allow(self._limit_of(job))
            pid = worker.pid
            if (reply := worker.poll()) is not None:
                del self._running[worker]
                self._spans.append((reply.began, reply.began + reply.seconds))
                self._waiting.extendleft(self._parked.pop(pid, ()))
                if self._is_parked(job, reply):
                    continue
                self._learn(reply)
                self._known[job.key] = compiled = self._classified(job.config, reply)
                if not job.for_check:
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
        return self._limit_s

    def _limit_of(self, job: _Job) -> float:
        return self._cap_s if job.for_check else min(job.limit_s, self._limit_s)

    def _was_cut_short(self, key: str) -> bool:
        failure = self._known[key].failure if key in self._known else None
        return failure is not None and failure.status is Status.COMPILE_TIMEOUT and failure.compile_s < self._cap_s

    def _learnt_limit_s(self) -> float:
        if len(self._seconds) >= _FEWEST:
            usual_s = quantiles(self._seconds, n=10, method="inclusive")[-1]
            return min(self._cap_s, max(_SHORTEST_S, _SLOWEST_OF * usual_s))
        hopeless = self._timeouts >= _HOPELESS and not self._seconds
        return min(self._cap_s, _HOPELESS_S) if hopeless else self._cap_s

    def drop(self) -> None:
        """Forget what waits and end what runs."""
        for worker in self._running:
            worker.kill()
        if self._running:
            self._workers.forget_claims()
        self._running.clear()
        self._parked.clear()
        self._waiting.clear()
        self._done.clear()

    def _service_of(self, task: CompileTask) -> Service:
        service = self._service
        if service is None or (service.args is not task.target_args and service.args != task.target_args):
            service = self._service = Service(task.target, task.target_args)
        return service

    def _is_parked(self, job: _Job, reply: Reply) -> bool:
        """Whether the same code is being compiled for another config: then ``job`` is tried again after that."""
        if not (isinstance(reply.error, RemoteError) and reply.error.kind == BeingMade.__name__):
            return False
        pid = str(reply.error).rpartition(" ")[2]
        holder = next((worker.pid for worker in self._running if str(worker.pid) == pid), 0)
        if holder:
            self._parked.setdefault(holder, []).append(job)
        else:  # it is done by now
            self._waiting.append(job)
        return True

    def _learn(self, reply: Reply) -> None:
        if reply.error is None:
            self._seconds.append(reply.seconds)
        self._timeouts += isinstance(reply.error, WorkerTimeout)
        self._limit_s = self._learnt_limit_s()

    def _classified(self, config: Config, reply: Reply) -> Compiled:
        log = reply.log[-_LOG_LIMIT:]
        trial = Trial(config, compile_s=reply.seconds, log=log)
        if reply.error is None:
            build = reply.value if isinstance(reply.value, Build) else Build(reply.value)
            failure = None
            if build.refused:
                failure = replace(trial, status=Status.OUT_OF_RESOURCES, reason=build.refused, **described(build))
            return Compiled(config, build, failure, reply.seconds, log)
        given_up = isinstance(reply.error, RemoteError) and reply.error.kind == GivenUp.__name__
        is_timeout = given_up or isinstance(reply.error, WorkerTimeout)
        status = Status.COMPILE_TIMEOUT if is_timeout else Status.COMPILE_ERROR
        return Compiled(config, Build(), failed(trial, status, reply.error), reply.seconds, log)


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
    reason = "".join(c if c.isprintable() else "?" for c in lines[0][:_REASON_LIMIT])
    return replace(trial, status=status, reason=reason, log=log[-_LOG_LIMIT:])
