"""Compile -> check -> time: configs in, trials out.

One loop serves everything that runs at once: compile workers (``compilation.py``), and for each device a lane that
checks and times configs one after the other under the device's lock (``lane.py``).

1. On a GPU a config is timed the moment it is compiled, while others still compile. On host clocks a handful is
   compiled, then timed, then the next: compilers on the same cores would disturb the readings.
2. Configs whose compiled code is the same are timed once.
3. Configs that spill registers wait behind those that do not: they are seldom fast.
4. What ``measure`` leaves under way goes on while the search thinks, and comes with a later call.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_kerneltune.account import Account
from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.compilation import Compilation, Compiled, config_key, described, failed
from pytest_kerneltune.errors import KernelError, RemoteError, WorkerCrash, WorkerError, WorkerTimeout
from pytest_kerneltune.lane import Lane
from pytest_kerneltune.launcher import REFERENCE_LIMIT_S, SHORTEST_LIMIT_S, Workers, wait_for
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.timing import summarise
from pytest_kerneltune.trial import Config, Status, Trial
from pytest_kerneltune.turns import Turn, Unshared
from pytest_kerneltune.worker import Reply

_LOG_LIMIT = 4_000
_SLOWEST = 50.0  # a config this many times slower than the quickest one so far is as good as hung
_FIRST = 2_000.0  # times the reference, while no config has worked
_HOPELESS = 3  # so many timeouts before anything worked shorten the limit
_HANDFUL = 4  # configs a compile worker, on host clocks
_LONGEST_WAIT_S = 1.0
_LACKING = ("out of memory", "out of resource", "too many resources", "OUT_OF_RESOURCES")  # as drivers say it
_LOCK_POLL_S = 0.005


@dataclass(frozen=True)
class Limits:
    """Seconds that compiling one config, and checking and timing one config, may take at most."""

    compile_s: float = 60.0
    run_s: float = 30.0


@dataclass(frozen=True)
class Site:
    """Where a kernel may run: environment of the launching process, and whose turn it is on the device."""

    env: Mapping[str, str]
    turn: Turn = field(default_factory=Unshared)


class Benchmark:
    """Measures configs of one kernel; at the first of ``sites``, and spread over all of them while it searches."""

    def __init__(
        self,
        kernel: Kernel,
        space: ConfigSpace,
        workers: Workers,
        limits: Limits,
        sites: Sequence[Site] = (),
        modules: Sequence[Any] = (),
        gauged: bool = False,
    ) -> None:
        """``gauged`` asks for the clock to be measured, too, before the first config is (see ``instrument``)."""
        self.kernel = kernel
        self.account = Account()
        self._space, self._limits = space, limits
        self._compilation = Compilation(kernel, space, workers, limits.compile_s, self.account.compiling)
        self._lanes = [Lane(workers.launcher(kernel, modules, site.env), site.turn) for site in sites or [Site({})]]
        self._overlaps = kernel.clock == "cuda"
        self._handful = math.inf if self._overlaps else _HANDFUL * workers.jobs
        self._room = self._handful
        self._ready: list[tuple[bool, int, Compiled]] = []  # a heap
        self._order = itertools.count()
        self._by_code: dict[str, Trial] = {}
        self._twins: dict[str, list[Compiled]] = {}
        self._wanted: Counter[str] = Counter()
        self._finished: list[Trial] = []
        self._quickest_s = math.inf
        self._timeouts = 0
        self._timed, self._gauged = True, gauged

    def begin(self, timed: bool = True) -> None:
        """Have the kernel set up where it will run, and its reference run there; does not wait for that.

        Where nothing will be ``timed``, it is not learnt how long the reference takes either.
        """
        self._timed = timed
        self._set_up()

    def _set_up(self) -> None:
        """Devices but the first are for searches, which have more than a few configs under way."""
        is_searching = self._wanted.total() > len(self._lanes)
        for lane in self._lanes if is_searching else self._lanes[:1]:
            if not lane.is_set_up and not lane.busy:
                lane.set_up(self._timed, self._gauged and lane is self._lanes[0])

    @property
    def instrument(self) -> Mapping[str, Any]:
        """What was measured of the clock; empty where it was not."""
        return self._lanes[0].instrument

    def start(self) -> str:
        """``begin``, and wait; the timing method. Raises KernelError where the kernel can't be set up."""
        first = self._lanes[0]
        while not first.is_set_up:
            self._pump(math.inf)
        return first.method

    def measure(
        self,
        configs: Sequence[Config],
        best_ms: float = math.inf,
        deadline: float = math.inf,
        done: Callable[[Trial], None] = lambda _: None,
        compile_s: float | None = None,
        enough: int | None = None,
    ) -> list[Trial]:
        """Trials of all ``configs``, in their order, and behind them of what earlier calls left under way; or the first
        ``enough`` of all these that are known, in that order, while the others go on for a later call.

        What is not known by ``deadline`` (monotonic s) is left out and dropped. ``done`` is called with each trial as
        soon as it is known; ``best_ms`` is the best latency so far, ``compile_s`` a shorter limit for compiling than
        usual.
        """
        for config in configs:
            self._wanted[self._key(config)] += 1
            self._compilation.add(config, math.inf if compile_s is None else compile_s)
            self._feed()  # making the next one's task may take a while
        missing = self._wanted.total() if enough is None else min(enough, self._wanted.total())
        found: list[Trial] = []
        try:
            while missing > len(found):
                is_late = time.monotonic() > deadline
                if is_late:
                    self._drop_unstarted()
                else:
                    self._dispatch(best_ms)
                    if not self._finished:
                        self._pump(deadline)
                for trial in self._taken(wait=is_late):
                    found.append(trial)
                    best_ms = min(best_ms, trial.latency_ms)
                    done(trial)
                if is_late:
                    break
        except BaseException:  # Ctrl-C, or an error of who is told: nobody will ask for the rest
            self._abort()
            raise
        finally:
            for lane in self._lanes:
                lane.withdraw()
        return found if enough is not None else self._ordered(configs, found)

    def check(self, config: Config) -> Trial:
        """Compile ``config``, run it once and compare it with the reference; not timed (latency inf, even if OK)."""
        compiled = self._compiled([config])[0]
        if compiled.failure is not None:
            return compiled.failure
        reply = self._asked("check", config, compiled.build.artifact, timeout=self._run_limit)
        return self._trial(compiled, reply, reply.value)

    def method(self, config: Config, wanted: str = "") -> str:
        """By which method ``config`` is to be compared (see Station.method). Raises KernelError where it is wrong."""
        reply = self._asked("method", config, self.artifact(config), wanted, timeout=REFERENCE_LIMIT_S * 4)
        if reply.error is not None:
            raise KernelError(f"the kernel cannot be timed: {reply.error}")
        return str(reply.value)

    def compare(
        self, arms: Mapping[str, Config], yardsticks: bool, blocks: int, method: str = ""
    ) -> dict[str, list[float]]:
        """Interleaved block values in ms of several configs (see Station.compare). Raises KernelError on failure."""
        ready = {}
        for (name, config), compiled in zip(arms.items(), self._compiled(list(arms.values())), strict=True):
            if compiled.failure is not None:
                raise KernelError(f"{name} ({dict(config)}): {compiled.failure.reason}")
            ready[name] = (config, compiled.build.artifact)
        reply = self._asked("compare", ready, yardsticks, blocks, method, timeout=REFERENCE_LIMIT_S * 4)
        if reply.error is not None:
            raise KernelError(f"the comparison failed: {reply.error}")
        values: dict[str, list[float]] = reply.value
        return values

    def restart(self) -> None:
        """Run what follows in a fresh process (plain callables: with nothing kept)."""
        for lane in self._lanes:
            lane.stop()

    def artifact(self, config: Config) -> Any:
        """What compiling ``config`` gave (None where nothing is compiled); raises KernelError if that failed."""
        compiled = self._compiled([config])[0]
        if compiled.failure is not None:
            raise KernelError(compiled.failure.reason)
        return compiled.build.artifact

    def _key(self, config: Config) -> str:
        return config_key(self._space, config)

    def _ordered(self, configs: Sequence[Config], found: Sequence[Trial]) -> list[Trial]:
        by_key: dict[str, list[Trial]] = {}
        for trial in found:
            by_key.setdefault(self._key(trial.config), []).append(trial)
        asked = [by_key[key].pop(0) for key in map(self._key, configs) if by_key.get(key)]
        return asked + [trial for trials in by_key.values() for trial in trials]

    def _compiled(self, configs: Sequence[Config]) -> list[Compiled]:
        """The configs compiled, in parallel; what is under way goes on meanwhile."""
        for config in configs:
            if not self._compilation.knows(config):
                self._compilation.add(config)
        try:
            while not all(self._compilation.known(c) is not None for c in configs):
                self._pump(math.inf)
        except BaseException:
            self._abort()
            raise
        return [known for c in configs if (known := self._compilation.known(c)) is not None]

    def _asked(self, method: str, *args: Any, timeout: float) -> Reply:
        """The first lane's answer; it finishes what it times first."""
        lane = self._lanes[0]
        try:
            while lane.busy or not lane.is_set_up:
                self._pump(math.inf)
            while not lane.submit(method, *args, timeout=timeout):
                self._pump(time.monotonic() + _LOCK_POLL_S)
            while lane.answer is None:
                self._pump(math.inf)
        except BaseException:
            self._abort()
            raise
        reply, lane.answer = lane.answer, None
        return reply

    def _pump(self, until: float) -> None:
        """Keep everything going that runs by itself; returns when something happened, or at ``until``."""
        self._set_up()
        self._feed()
        self._wait(until)
        for compiled in self._compilation.collect():
            self._take(compiled)
        for lane in list(self._lanes):
            self._look_at(lane)

    def _feed(self) -> None:
        """Give compile workers what they may begin with."""
        if not (self._ready or self._compilation.running or any(lane.job for lane in self._lanes)):
            self._room = self._handful
        if self._overlaps or not any(lane.job for lane in self._lanes):
            self._room -= self._compilation.feed(self._room)

    def _wait(self, until: float) -> None:
        if self._compilation.has_news or self._finished:
            return
        timeout = min(_LONGEST_WAIT_S, until - time.monotonic())
        if (self._ready and self._may_time) or any(lane.waits_for_lock for lane in self._lanes):
            timeout = min(timeout, _LOCK_POLL_S)
        running = [lane.launcher for lane in self._lanes if lane.launcher.busy]
        wait_for([*self._compilation.running, *running], timeout)

    def _take(self, compiled: Compiled) -> None:
        """What becomes of a compiled config: a trial where it failed, else it waits for a lane."""
        if not self._wanted[self._key(compiled.config)]:  # compiled for a check
            return
        if compiled.failure is not None:
            self._finished.append(compiled.failure)
        else:
            is_spilling = compiled.build.usage.get("stack_bytes", 0) > 0
            heapq.heappush(self._ready, (is_spilling, next(self._order), compiled))

    @property
    def _may_time(self) -> bool:
        return self._overlaps or not self._compilation.running

    def _dispatch(self, best_ms: float) -> None:
        """Give idle lanes what is compiled."""
        for lane in self._lanes if self._may_time else ():
            while self._ready and lane.is_set_up and not lane.busy:
                compiled = self._ready[0][-1]
                code = compiled.build.code
                if code not in self._by_code and code not in self._twins:
                    args = (compiled.config, compiled.build.artifact, best_ms)
                    if not lane.submit("check_and_time", *args, timeout=self._run_limit, job=compiled):
                        break
                heapq.heappop(self._ready)
                self._join(compiled, lane)

    def _join(self, compiled: Compiled, lane: Lane) -> None:
        """Note who else waits for the same code, or take the trial that another config of the same code had."""
        code = compiled.build.code
        if lane.job is compiled:
            if code:
                self._twins[code] = []
        elif code in self._by_code:
            self._finished.append(_shared(self._by_code[code], compiled))
        else:
            self._twins[code].append(compiled)

    def _look_at(self, lane: Lane) -> None:
        try:
            reply = lane.poll() if lane.busy else None
        except KernelError:
            if lane is self._lanes[0]:
                raise
            self._lanes.remove(lane)  # a second device that can't be used is no reason to stop
            return
        if reply is None:
            return
        compiled, lane.job = lane.job, None
        if compiled is None:
            lane.answer = reply
        else:
            self._finish(compiled, reply)

    def _finish(self, compiled: Compiled, reply: Reply) -> None:
        self.account.timing.append((reply.began, reply.began + reply.seconds))
        wrong, readings = reply.value or (None, [])
        trial = self._trial(compiled, reply, wrong)
        if trial.ok:
            trial = replace(trial, latency_ms=summarise(self.kernel.clock, readings), samples_ms=tuple(readings))
        self._finished.append(trial)
        if code := compiled.build.code:
            self._by_code[code] = trial
            self._finished += [_shared(trial, twin) for twin in self._twins.pop(code, ())]

    def _taken(self, wait: bool) -> list[Trial]:
        """The trials that are known by now, with ``wait`` those of what is being timed too."""
        while wait and any(lane.job for lane in self._lanes):
            self._pump(math.inf)
        taken, self._finished = self._finished, []
        for trial in taken:
            self._wanted[self._key(trial.config)] -= 1
        if wait:
            self._wanted.clear()
        return taken

    def _drop_unstarted(self) -> None:
        self._compilation.drop()
        self._ready.clear()

    def _abort(self) -> None:
        """End everything that runs, and forget it."""
        self._drop_unstarted()
        for lane in self._lanes:
            if lane.busy:
                lane.stop()
        self._wanted.clear()
        self._twins.clear()
        self._finished.clear()

    @property
    def _run_limit(self) -> float:
        shortest = SHORTEST_LIMIT_S[self.kernel.clock]
        if math.isinf(self._quickest_s):
            reference_s = self._lanes[0].reference_ms / 1e3
            first_s = max(shortest, _FIRST * reference_s) if reference_s and self._overlaps else math.inf
            return min(self._limits.run_s, first_s if self._timeouts < _HOPELESS else shortest)
        return min(self._limits.run_s, max(shortest, _SLOWEST * self._quickest_s))

    def _trial(self, compiled: Compiled, reply: Reply, wrong: str | None) -> Trial:
        log = "\n".join(text for text in (compiled.log, reply.log) if text)
        trial = Trial(compiled.config, log=log[-_LOG_LIMIT:], compile_s=compiled.seconds, measure_s=reply.seconds)
        trial = replace(trial, **described(compiled.build))
        if reply.error is not None:
            self._timeouts += isinstance(reply.error, WorkerTimeout)
            return failed(trial, _run_status(reply.error), reply.error)
        if wrong is not None:
            return replace(trial, status=Status.WRONG, reason=f"output {wrong}")
        self._quickest_s = min(self._quickest_s, reply.seconds)  # of the right ones: a wrong one may do too little
        return trial


def _shared(trial: Trial, compiled: Compiled) -> Trial:
    """The trial of a config whose code is that of ``trial``'s config."""
    log = f"the same compiled code as {dict(trial.config)}"
    return replace(trial, config=compiled.config, compile_s=compiled.seconds, measure_s=0.0, log=log)


def _run_status(error: WorkerError) -> Status:
    if isinstance(error, WorkerTimeout):
        return Status.RUN_TIMEOUT
    if isinstance(error, WorkerCrash):
        return Status.CRASH
    lacking = isinstance(error, RemoteError) and (
        error.kind in ("OutOfResources", "OutOfMemoryError") or any(text in str(error) for text in _LACKING)
    )
    return Status.OUT_OF_RESOURCES if lacking else Status.RUNTIME_ERROR
