"""Compile -> check -> time: configs in, trials out.

One loop serves everything that runs at once: compile workers (``compilation.py``), and for each device a lane that
checks and times configs one after the other under the device's lock (``lane.py``). Between them lies a queue
(``ready.py``); ``attempts.py`` knows what became of configs.

1. On a GPU a config is timed the moment it is compiled, while others still compile. On host clocks a handful is
   compiled, then timed, then the next: compilers on the same cores would disturb the readings, those of a comparison
   too.
2. Configs whose compiled code is the same are timed once.
3. Configs that spill registers wait behind those that do not: they are seldom fast.
4. What ``measure`` leaves under way goes on while the search thinks, and comes with a later call.
5. A device whose new process cannot even run the reference is at fault, not the config that was to run there.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pytest_kerneltune.account import Account
from pytest_kerneltune.attempts import Attempts
from pytest_kerneltune.backends import Build, Kernel
from pytest_kerneltune.compilation import Compilation, Compiled, config_key
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.lane import Lane, set_up_failure
from pytest_kerneltune.launcher import Workers, wait_for
from pytest_kerneltune.ready import Ready
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Trial
from pytest_kerneltune.turns import Turn, Unshared
from pytest_kerneltune.worker import Reply

_HANDFUL = 4  # configs a compile worker, on host clocks
_LONGEST_WAIT_S = 1.0
_MOST_FAILURES = 3  # running, of a device without which there is no going on
_LONGEST_COMPARISON_S = 1200.0
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
        self._space = space
        self._attempts = Attempts(kernel.clock, limits.run_s)
        self._compilation = Compilation(kernel, space, workers, limits.compile_s, self.account.compiling)
        self._lanes = [Lane(workers.launcher(kernel, modules, site.env), site.turn) for site in sites or [Site({})]]
        self._overlaps = kernel.clock == "cuda"
        self._handful = math.inf if self._overlaps else _HANDFUL * workers.jobs
        self._room = self._handful
        self._ready = Ready()
        self._wanted: Counter[str] = Counter()
        self._finished: list[Trial] = []
        self._is_asked = False
        self._spreads = False
        self._best_ms = math.inf
        self._timed, self._gauged = True, gauged

    def begin(self, timed: bool = True) -> None:
        """Have the kernel set up where it will run, and its reference run there; does not wait for that.

        Where nothing will be ``timed``, it is not learnt how long the reference takes either.
        """
        self._timed = timed
        self._set_up()

    def spread(self) -> None:
        """Have the devices besides the first set up too: there will be more than a few configs to time."""
        self._spreads = True
        self._set_up()

    def _set_up(self) -> None:
        self._spreads = self._spreads or self._wanted.total() > len(self._lanes)
        for lane in self._lanes if self._spreads else self._lanes[:1]:
            if not lane.is_set_up and not lane.busy:
                lane.set_up(self._timed and self._overlaps, self._gauged and lane is self._lanes[0])

    @property
    def instrument(self) -> Mapping[str, Any]:
        """What was measured of the clock; empty where it was not."""
        return self._lanes[0].instrument

    @property
    def pid(self) -> int:
        """The process that comparisons are made in; 0 where there is none yet."""
        return self._lanes[0].launcher.pid

    def start(self) -> str:
        """``begin``, and wait; the timing method. Raises KernelError where the kernel can't be set up."""
        first = self._lanes[0]
        with self._or_nothing():
            while not first.is_set_up:
                self._pump()
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
        """Trials of all ``configs``, in their order, and behind them of what earlier calls left under way; or, as soon
        as ``enough`` of all these are known, those that are, in that order: the others go on for a later call.

        What is not known by ``deadline`` (monotonic s) is left out and dropped. ``done`` is called with each trial as
        soon as it is known; ``best_ms`` is the best latency so far, ``compile_s`` a shorter limit for compiling than
        usual.
        """
        found: list[Trial] = []
        self._best_ms = best_ms
        with self._or_nothing():
            for config in configs:
                self._wanted[self._key(config)] += 1
                self._compilation.add(config, math.inf if compile_s is None else compile_s)
                self._feed()  # making the next one's task may take a while
            missing = self._wanted.total() if enough is None else min(enough, self._wanted.total())
            while missing > len(found):
                is_late = time.monotonic() > deadline
                if is_late:
                    self._end_late()
                elif not self._finished:
                    is_refused = self._dispatch(self._lanes)
                    self._pump(min(deadline, time.monotonic() + _LOCK_POLL_S) if is_refused else deadline)
                for trial in self._taken():
                    found.append(trial)
                    self._best_ms = min(self._best_ms, trial.latency_ms)
                    done(trial)
                if is_late:
                    break
        for lane in self._lanes:
            lane.withdraw()
        return found if enough is not None else self._ordered(configs, found)

    def check(self, config: Config) -> Trial:
        """Compile ``config``, run it once and compare it with the reference; not timed (latency inf, even if OK)."""
        compiled = self._compiled([config])[0]
        if compiled.failure is not None:
            return compiled.failure
        reply = self._asked("check", config, compiled.build.artifact, timeout=self._run_limit)
        return self._attempts.checked(compiled, reply)

    def method(self, config: Config, wanted: str = "") -> str:
        """By which method ``config`` is to be compared (see Station.method). Raises KernelError where it is wrong."""
        reply = self._asked("method", config, self.artifact(config), wanted, timeout=self._comparison_limit(1, True, 1))
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
        limit_s = self._comparison_limit(len(arms), yardsticks, blocks)
        reply = self._asked("compare", ready, yardsticks, blocks, method, timeout=limit_s)
        if reply.error is not None:
            raise KernelError(f"the comparison failed: {reply.error}")
        values: dict[str, list[float]] = reply.value
        return values

    def has_same_inputs(self) -> bool:
        """See Station.has_same_inputs; False where that cannot be asked."""
        self.start()
        return bool(self._asked("has_same_inputs", timeout=self._run_limit).value)

    def restart(self) -> None:
        """Run what follows in a fresh process (plain callables: with nothing kept)."""
        for lane in self._lanes:
            if lane.job is not None:
                self._ready.put_back(lane.job)
            lane.stop()

    def close(self) -> None:
        """End what runs for this kernel, so that the workers are free for the next one, and forget it."""
        self._drop_unstarted()
        for lane in self._lanes:
            if lane.job is not None:
                self._ready.forget(lane.job)
            if lane.busy:
                lane.stop()
            lane.answer = None
            lane.withdraw()
        self._wanted.clear()
        self._finished.clear()
        self._is_asked = False

    def artifact(self, config: Config) -> Any:
        """What compiling ``config`` gave (None where nothing is compiled); raises KernelError if that failed."""
        return self._build(config).artifact

    def code(self, config: Config) -> str:
        """A digest of what compiling ``config`` gave, "" where it is not known (see Build); raises as ``artifact``."""
        return self._build(config).code

    def _build(self, config: Config) -> Build:
        compiled = self._compiled([config])[0]
        if compiled.failure is not None:
            raise KernelError(compiled.failure.reason)
        return compiled.build

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
        with self._or_nothing():
            for config in configs:
                if not self._compilation.knows(config):
                    self._compilation.add(config, for_check=True)
            while not all(self._compilation.known(c) is not None for c in configs):
                self._room = math.inf  # for whatever is queued before them
                self._pump()
            self._room = min(self._room, self._handful)
        return [known for c in configs if (known := self._compilation.known(c)) is not None]

    def _asked(self, method: str, *args: Any, timeout: float) -> Reply:
        """The first lane's answer; it finishes what it times first."""
        lane = self._lanes[0]
        with self._or_nothing():
            self._is_asked = True
            while lane.busy or not lane.is_set_up or not self._is_quiet:
                self._pump_besides(lane)
            while not lane.submit(method, *args, timeout=timeout):
                self._pump_besides(lane, time.monotonic() + _LOCK_POLL_S)
            while lane.answer is None:
                self._pump_besides(lane)
        self._is_asked = False
        reply, lane.answer = lane.answer, None
        return reply

    @contextmanager
    def _or_nothing(self) -> Iterator[None]:
        """End everything where the body does not: Ctrl-C, or an error, and nobody will ask for the rest."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _pump(self, until: float = math.inf) -> None:
        """Keep everything going that runs by itself; returns when something happened, or at ``until``."""
        self._set_up()
        self._feed()
        self._wait(until)
        for compiled in self._compilation.collect():
            self._take(compiled)
        for lane in list(self._lanes):
            self._look_at(lane)

    def _pump_besides(self, lane: Lane, until: float = math.inf) -> None:
        """The same, and time on the other devices what is compiled."""
        self._dispatch([other for other in self._lanes if other is not lane])
        self._pump(until)

    def _feed(self) -> None:
        """Give compile workers what they may begin with."""
        is_timing = self._is_asked or any(lane.job for lane in self._lanes)
        if not (is_timing or self._ready or self._compilation.running):
            self._room = self._handful
        if self._overlaps or not is_timing:
            self._room -= self._compilation.feed(self._room)

    def _wait(self, until: float) -> None:
        if self._compilation.has_news:
            return
        timeout = min(_LONGEST_WAIT_S, until - time.monotonic())
        if any(lane.waits and (self._is_quiet or not lane.needs_quiet) for lane in self._lanes):
            timeout = min(timeout, _LOCK_POLL_S)
        running = [lane.launcher for lane in self._lanes if lane.launcher.busy]
        wait_for([*self._compilation.running, *running], timeout)

    def _take(self, compiled: Compiled) -> None:
        """What becomes of a compiled config: a trial where it failed or its code is known, else it waits for a lane."""
        trial = compiled.failure or self._ready.add(compiled)
        if trial is not None:
            self._finished.append(trial)

    @property
    def _is_quiet(self) -> bool:
        """Whether nothing goes on that timing would feel."""
        return self._overlaps or not self._compilation.running

    def _dispatch(self, lanes: Sequence[Lane]) -> bool:
        """Give idle ones of ``lanes`` what is compiled; whether another process has a device that would be used."""
        for lane in lanes if self._is_quiet else ():
            if self._ready and lane.is_set_up and not lane.busy:
                job = self._ready.first
                args = (job.config, job.build.artifact, self._best_ms)
                if lane.submit("check_and_time", *args, timeout=self._run_limit, job=job):
                    self._ready.pop()
        return self._is_quiet and bool(self._ready) and any(lane.is_set_up and not lane.busy for lane in lanes)

    def _look_at(self, lane: Lane) -> None:
        try:
            reply = lane.poll(self._is_quiet) if lane.busy else None
        except KernelError as error:
            self._give_up(lane, error)
            return
        if reply is None:
            return
        compiled, lane.job = lane.job, None
        if compiled is None:
            lane.answer = reply
        elif reply.error is None or reply.is_begun:
            lane.failures = 0
            self._finish(compiled, reply)
        else:
            self._ready.put_back(compiled)
            lane.failures += 1
            lane.stop()
            if lane is not self._lanes[0] or lane.failures >= _MOST_FAILURES:
                self._give_up(lane, KernelError(set_up_failure(reply.error)))

    def _give_up(self, lane: Lane, error: KernelError) -> None:
        """Go on without a device, unless it is the one that all comparisons are made on."""
        if lane is self._lanes[0]:
            raise error
        lane.stop()
        self._lanes.remove(lane)

    def _finish(self, compiled: Compiled, reply: Reply) -> None:
        self.account.timing.append((reply.began, reply.began + reply.seconds))
        self._finished += self._ready.end(compiled, self._attempts.timed(compiled, reply))

    def _taken(self) -> list[Trial]:
        """The trials that became known since the last call."""
        taken, self._finished = self._finished, []
        for trial in taken:
            key = self._key(trial.config)
            self._wanted[key] -= 1
            if not self._wanted[key]:
                del self._wanted[key]
        return taken

    def _end_late(self) -> None:
        """Wait for what is being timed, and forget the rest."""
        self._drop_unstarted()
        while any(lane.job for lane in self._lanes):
            self._pump()
        self._drop_unstarted()  # what a broken device gave back
        done = Counter(self._key(trial.config) for trial in self._finished)
        self._wanted = self._wanted & done

    def _drop_unstarted(self) -> None:
        self._compilation.drop()
        self._ready.clear()

    def _comparison_limit(self, arms: int, yardsticks: bool, blocks: int) -> float:
        """Seconds; yardsticks, if any, are three more arms, and the reference runs first where the process is new."""
        self.start()  # tells how long the reference takes
        lane = self._lanes[0]
        compared_s = self._attempts.comparison_limit_s(arms + 3 * yardsticks, blocks, lane.reference_ms)
        return min(_LONGEST_COMPARISON_S, compared_s + lane.reference_s * (blocks + 2))

    @property
    def _run_limit(self) -> float:
        return self._attempts.limit_s(self._lanes[0].reference_ms)
