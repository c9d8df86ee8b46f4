"""The driver: one loop that turns a search's proposals into trials, and the choice among the best of them.

The driver owns what a search must not know: time, budget, measuring, re-timing and logging.

1. Every attempt counts towards the budget, failures too; a config proposed twice is answered from memory.
2. A batch's new best is re-timed side by side with the incumbent before the search hears of it: its latency is then
   the incumbent's times the paired ratio, so that a machine whose speed wanders does not crown a lucky reading.
3. Where a batch says how many trials are enough, the search hears of so many and goes on; what is under way then is
   measured all the same, and sent when it is known. After the search's end the run waits for it.
4. Where a batch asks for it, the fastest configs of the run are then re-timed side by side, so that what the search
   decides next rests on better readings. The trials of those that were measured earlier are sent behind the batch's.
5. After the last batch the finals (``finals.py``) decide: readings made during the search are selected for being low.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from types import MappingProxyType
from typing import Any, Protocol

from pytest_kerneltune.errors import KernelError, LLMError, SpaceError, UsageError
from pytest_kerneltune.gate import format_ms
from pytest_kerneltune.outcome import StageSummary
from pytest_kerneltune.search import Proposals, Search
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Budget, Config, Trial, best_trial

_RETIME_BLOCKS = 2
_ON_TARGET = "target latency"
_IDLE_BATCHES = 20  # in a row that hold nothing new: such a search would never end


class Measure(Protocol):
    """What the driver needs of a benchmark (``benchmark.Benchmark``, or a replay)."""

    def measure(
        self,
        configs: Sequence[Config],
        best_ms: float,
        deadline: float,
        done: Callable[[Trial], None],
        compile_s: float | None,
        enough: int | None,
    ) -> list[Trial]: ...
    def compare(self, arms: Mapping[str, Config], yardsticks: bool, blocks: int) -> dict[str, list[float]]: ...


@dataclass(frozen=True)
class Progress:
    """Where the tuning of a kernel stands; ``best_ms`` is inf while nothing worked."""

    stage: str
    tried: int
    failed: int
    best_ms: float
    elapsed_s: float


@dataclass
class SearchRun:
    """What a search did: every trial in order, why it stopped ("search ended", "time budget", ...), its notes.

    ``counts`` are the sums of its batches' counts. ``error`` says why the search gave up for want of a language model,
    where that is what the user wants; empty otherwise.
    """

    trials: list[Trial] = field(default_factory=list)
    stopped: str = ""
    seconds: float = 0.0
    notes: list[tuple[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def complete(self) -> bool:
        """Whether the search ended by itself rather than by a budget."""
        return self.stopped == "search ended"

    @property
    def on_target(self) -> bool:
        """Whether the search was stopped because a config was fast enough."""
        return self.stopped.startswith(_ON_TARGET)


class Driver:
    """Runs one search on one kernel."""

    def __init__(
        self,
        bench: Measure,
        space: ConfigSpace,
        budget: Budget = Budget(),  # noqa: B008 - frozen
        record: Callable[[Trial], None] = lambda _: None,
        progress: Callable[[Progress], None] = lambda _: None,
        compile_limits: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """``record`` gets each new trial the moment it is measured; ``progress`` is told after each.
        ``compile_limits`` are seconds a compile may take in the stages that have a limit of their own."""
        self._bench, self._space, self._budget = bench, space, budget
        self._record, self._progress, self._compile_limits = record, progress, compile_limits
        self._known: dict[str, Trial] = {}
        self._under_way: dict[str, str] = {}  # key of a config to the stage that proposed it
        self._start = 0.0
        self._run = SearchRun()

    def drive(self, search: Search, rng: random.Random, prior: Sequence[Trial] = ()) -> SearchRun:
        """Drive ``search`` to its end or the budget's. ``prior`` trials count as attempts already made.

        Raises SpaceError where the search proposes a config that is not in the space, and what the search raises; but
        not LLMError: a run that a language model failed keeps what it measured.
        """
        self._start = time.monotonic()
        run = self._run = SearchRun(list(prior))
        self._known = {self._space.key(t.config): t for t in prior}
        proposals = search.propose(self._space, rng, tuple(prior))
        run.stopped = self._target_reached()
        try:
            if not run.stopped:
                self._exchange(proposals)
        except StopIteration as end:
            self._note(end.value)
            self._measure(())
            run.stopped = run.stopped or "search ended"
        except LLMError as error:
            self._drop_late()
            run.stopped, run.error = "the language model failed", str(error)
        except Exception:  # the search's own: the compilers are wanted for the next kernel
            self._drop_late()
            raise
        finally:
            proposals.close()
            run.seconds = time.monotonic() - self._start
        return run

    def _exchange(self, proposals: Proposals) -> None:
        """Send trials for configs until the run is stopped; raises StopIteration where the search ends first."""
        run, idle = self._run, 0
        batch = next(proposals)
        while not run.stopped and idle < _IDLE_BATCHES:
            before = len(run.trials)
            trials = self._measure(batch)
            if not run.stopped:
                idle = idle + 1 if len(run.trials) == before else 0
                batch = proposals.send(trials)
        run.stopped = run.stopped or "the search proposed nothing new"
        self._drop_late()

    def _note(self, batch: Any) -> None:
        """Take what a batch says besides its configs into the run."""
        if not isinstance(batch, Batch):
            return
        if batch.note:
            self._run.notes.append((batch.stage, batch.note))
        for name, number in batch.counts.items():
            self._run.counts[name] = self._run.counts.get(name, 0) + number

    def _measure(self, batch: Sequence[Config]) -> list[Trial]:
        """The batch's trials in order, then those of earlier batches that came late or were re-timed; fewer, with
        ``stopped`` set, where the budget ends within it."""
        run, enough = self._run, getattr(batch, "enough", None)
        self._note(batch)
        configs = [self._canonical(c) for c in batch]
        keys = [self._space.key(c) for c in configs]
        seen = {*self._known, *self._under_way}
        fresh = {k: c for k, c in zip(keys, configs, strict=True) if k not in seen}
        chosen = dict(itertools.islice(fresh.items(), self._room))
        self._under_way |= dict.fromkeys(chosen, getattr(batch, "stage", ""))
        is_spent = len(chosen) < len(fresh) or (self._room == 0 and len(fresh) > 0)
        incumbent = best_trial(run.trials)
        new = self._retimed(self._measure_new(list(chosen.values()), None if is_spent else enough), incumbent)
        answered = [k for k in keys if k in self._known]
        for trial in new:
            self._known[self._space.key(trial.config)] = trial
            run.trials.append(trial)
        spent = f"budget of {self._budget.configs} configs" if is_spent else ""
        run.stopped = self._target_reached() or self._time_spent() or spent
        corrected = {} if run.stopped else self._retimed_fastest(getattr(batch, "retime", 0))
        run.stopped = run.stopped or self._target_reached() or self._time_spent()
        if run.stopped:
            self._drop_late()
        if enough is None:
            answered = [k for k in keys if k in self._known]
        others = dict.fromkeys([*(self._space.key(t.config) for t in new), *corrected])
        return [self._known[key] for key in [*answered, *(key for key in others if key not in answered)]]

    @property
    def _room(self) -> int | None:
        """How many more configs the budget allows for; None is no limit."""
        if self._budget.configs is None:
            return None
        return max(0, self._budget.configs - len(self._run.trials) - len(self._under_way))

    def _drop_late(self) -> None:
        """Take what is known by now of the configs under way, and drop the rest."""
        if not self._under_way:
            return
        self._run.trials += self._bench_trials([], -math.inf, None)
        self._under_way.clear()

    def _target_reached(self) -> str:
        """Why to stop, where the best latency is the target or less."""
        target_ms, best = self._budget.target_ms, best_trial(self._run.trials)
        if target_ms is None or best is None or best.latency_ms > target_ms:
            return ""
        return f"{_ON_TARGET} of {format_ms(target_ms)} reached"

    def _time_spent(self) -> str:
        """Why to stop, where the time is up."""
        return f"time budget of {self._budget.seconds:g} s" if time.monotonic() >= self._deadline else ""

    @property
    def _deadline(self) -> float:
        return math.inf if self._budget.seconds is None else self._start + self._budget.seconds

    def _canonical(self, config: Config) -> Config:
        try:
            return self._space.canonical(config)
        except SpaceError as error:
            raise SpaceError(f"the search proposed a config that is not in the space: {error}") from error

    def _measure_new(self, configs: Sequence[Config], enough: int | None) -> list[Trial]:
        """Trials of ``configs`` and of what is under way; ``enough`` of them where that is no None."""
        measured: list[Trial] = []
        if self._under_way and time.monotonic() < self._deadline:
            measured = self._bench_trials(configs, self._deadline, enough)
        if configs and not measured and not self._run.trials:
            # However small the time budget is, one config gets measured.
            measured = self._bench_trials(configs[:1], math.inf, None)
        return measured

    def _bench_trials(self, configs: Sequence[Config], deadline: float, enough: int | None) -> list[Trial]:
        """What the bench measures, each trial with its stage and time, recorded as soon as it is known."""
        best = best_trial(self._run.trials)
        best_ms = best.latency_ms if best else math.inf
        tried, failed = len(self._run.trials), sum(not t.ok for t in self._run.trials)
        stamped: dict[str, Trial] = {}

        def done(trial: Trial) -> None:
            nonlocal best_ms, tried, failed
            key = self._space.key(trial.config)
            elapsed = time.monotonic() - self._start
            stamped[key] = replace(trial, stage=self._under_way.pop(key, ""), at_s=round(elapsed, 3))
            self._record(stamped[key])
            best_ms, tried, failed = min(best_ms, trial.latency_ms), tried + 1, failed + (not trial.ok)
            self._progress(Progress(stamped[key].stage, tried, failed, best_ms, elapsed))

        stage = self._under_way.get(self._space.key(configs[0]), "") if configs else ""
        trials = self._bench.measure(configs, best_ms, deadline, done, self._compile_limits.get(stage), enough)
        return [stamped[self._space.key(trial.config)] for trial in trials]

    def _retimed(self, trials: Sequence[Trial], incumbent: Trial | None) -> list[Trial]:
        """``trials`` with the latency of a new best corrected by a paired comparison with the incumbent."""
        best = best_trial(trials)
        if best is None or incumbent is None or best.latency_ms >= incumbent.latency_ms:
            return list(trials)
        if time.monotonic() >= self._deadline:  # the search will hear no more, and the finals decide
            return list(trials)
        try:
            readings = self._bench.compare({"old": incumbent.config, "new": best.config}, False, _RETIME_BLOCKS)
        except KernelError:  # it worked when it was measured; the finals will tell
            return list(trials)
        latency = incumbent.latency_ms * _paired_ratio(readings["new"], readings["old"])
        return [replace(t, latency_ms=latency) if t is best else t for t in trials]

    def _retimed_fastest(self, count: int) -> dict[str, Trial]:
        """The fastest ``count`` trials of the run by key, corrected by a comparison with each other; else none."""
        trials = self._run.trials
        places = sorted((i for i, t in enumerate(trials) if t.ok), key=lambda i: trials[i].latency_ms)[:count]
        if len(places) < 2 or time.monotonic() >= self._deadline:
            return {}
        try:
            readings = self._bench.compare({str(i): trials[i].config for i in places}, False, _RETIME_BLOCKS)
        except KernelError:  # they worked when they were measured; the finals will tell
            return {}
        base = readings[str(places[0])]
        ratios = {i: _paired_ratio(readings[str(i)], base) for i in places}
        # Their common level stays: the scale of the luckiest reading would sink with every comparison.
        unit_ms = median(trials[i].latency_ms / ratio for i, ratio in ratios.items())
        for i, ratio in ratios.items():
            trials[i] = replace(trials[i], latency_ms=unit_ms * ratio)
        corrected = {self._space.key(trials[i].config): trials[i] for i in places}
        self._known.update(corrected)
        return corrected


def stages(run: SearchRun) -> tuple[StageSummary, ...]:
    """The run by stage, in order of appearance; a note belongs to the stage that it was given for."""
    names = list(dict.fromkeys([*(t.stage for t in run.trials), *(stage for stage, _ in run.notes)]))
    summaries = []
    for name in names:
        mine = [t for t in run.trials if t.stage == name]
        best = best_trial(mine)
        note = "; ".join(text for stage, text in run.notes if stage == name)
        failed = sum(not t.ok for t in mine)
        summaries.append(StageSummary(name, len(mine), failed, best.latency_ms if best else None, note))
    return tuple(summaries)


def search_rng(seed: int, name: str) -> random.Random:
    """The random numbers of a kernel's search: they depend on nothing but ``seed`` and the kernel's name."""
    return random.Random(f"{seed}:{name}")


def checked_configs(space: ConfigSpace, configs: Iterable[Config]) -> tuple[Config, ...]:
    """User configs, completed from the space's default and canonical; raises UsageError naming the config."""
    clean = []
    for config in configs:
        try:
            clean.append(space.canonical({**space.default, **config}))
        except (UsageError, TypeError) as error:
            raise UsageError(f"configs= holds {config!r}, which is not in the space: {error}") from None
    return tuple(clean)


def _paired_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    return math.exp(median(math.log(a / b) for a, b in zip(values, base, strict=True)))
