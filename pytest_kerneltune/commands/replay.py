"""Searches replayed on recorded spaces, in as many processes as wanted."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from pytest_kerneltune.comparison import best_so_far
from pytest_kerneltune.driver import search_rng
from pytest_kerneltune.errors import UsageError, WorkerCrash
from pytest_kerneltune.recorded import RecordedSpace
from pytest_kerneltune.search import Context, Effort, Proposals, Search, search_class
from pytest_kerneltune.trial import Config, Trial

_IDLE_BATCHES = 20  # in a row that hold nothing new: such a search would never end


@dataclass(frozen=True)
class Conditions:
    """What all runs share: ``measurements`` is where a run ends, ``draws`` the readings a latency is the mean of.

    ``batch`` is how many configs a search is told are measured at once. ``draws`` of 0 are recorded latencies, exact.
    """

    measurements: int
    effort: Effort = Effort.FULL
    batch: int = 1
    draws: int = 0


@dataclass(frozen=True)
class Run:
    """What a search did on the space recorded at ``path``: its curve in ms (``comparison``), and in how many batches.

    ``error`` is what it raised, in one line; then nothing else is known.
    """

    search: str
    path: Path
    seed: int
    curve: Sequence[float] = ()
    batches: int = 0
    cpu_s: float = 0.0
    error: str = ""


def check(name: str) -> None:
    """Raise UsageError where there is no search ``name``: one of ours, or ``module:Class``."""
    _search_class(name)


def replay(
    searches: Sequence[str], paths: Sequence[Path], seeds: int, conditions: Conditions, jobs: int
) -> Iterator[Run]:
    """A run for each search, space and seed, as they end; with one job they are made in this process.

    Raises WorkerCrash where a process dies.
    """
    _space.cache_clear()  # the files may have changed since
    # Space by space, so that a process has the next run's space at hand.
    wanted = [(search, path, seed) for path in paths for search in searches for seed in range(seeds)]
    if jobs == 1:
        yield from (_run(conditions, *each) for each in wanted)
        return
    # Not forked: the threads of numerical libraries do not survive that.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(wanted)), context, _die_quietly)
    try:
        for future in as_completed([pool.submit(_run, conditions, *each) for each in wanted]):
            yield future.result()
    except BrokenProcessPool as error:
        raise WorkerCrash("a process that replayed searches died; --jobs 1 shows where") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _die_quietly() -> None:
    """End with the command when the user interrupts it, without a traceback from every process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _search_class(name: str) -> type[Search]:
    module, colon, attribute = name.partition(":")
    try:
        found: type[Search] = getattr(import_module(module), attribute) if colon else search_class(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"no search {name!r}: {error}") from error
    if not (hasattr(found, "preset") and hasattr(found, "propose")):
        raise UsageError(f"{name!r} is not a search: it has no preset() and propose()")
    return found


@lru_cache(maxsize=2)
def _space(path: Path) -> RecordedSpace:
    return RecordedSpace.load(path)


def _run(conditions: Conditions, search: str, path: Path, seed: int) -> Run:
    recorded = _space(path)
    run = Run(search, path, seed)
    player = _Player(recorded, conditions, seed)
    try:
        kind = _search_class(search)
        start = time.process_time()
        made = kind.preset(conditions.effort, Context(parallel=conditions.batch))
        player.play(made.propose(recorded.space, _rng(seed, recorded.name)))
        cpu_s = time.process_time() - start
    except Exception as error:  # a search may be anyone's: whatever it raises is said of it, and the others go on
        return replace(run, error=" ".join(f"{type(error).__name__}: {error}".split()))
    return replace(run, curve=player.curve, batches=player.batches, cpu_s=cpu_s)


def _rng(seed: int, name: str) -> random.Random:
    """As ``testing.drive`` has it for the driver's seed, so that figures can be compared."""
    return random.Random(search_rng(seed, name).getrandbits(32))


class _Player:
    """Answers a search from a recorded space as the driver does from a kernel: each config is measured once."""

    def __init__(self, recorded: RecordedSpace, conditions: Conditions, seed: int) -> None:
        self.batches = 0
        self._recorded, self._conditions = recorded, conditions
        self._rng = random.Random(f"readings of {seed}:{recorded.name}")
        self._seen: dict[str, Trial] = {}
        self._true_ms: list[float] = []

    @property
    def curve(self) -> list[float]:
        """The latency of the best config after each measurement."""
        trials = zip(self._true_ms, (t.latency_ms for t in self._seen.values()), strict=True)
        return best_so_far(trials, self._recorded.worst_ms, self._conditions.measurements)

    def play(self, proposals: Proposals) -> None:
        """Answer until all measurements are made, or the search ends, or it goes on without anything new."""
        idle = 0
        try:
            batch = next(proposals)
            while idle < _IDLE_BATCHES:
                before = len(self._seen)
                trials = self._answer(batch)
                self.batches += len(self._seen) > before
                if len(self._seen) >= self._conditions.measurements:
                    break
                idle = 0 if len(self._seen) > before else idle + 1
                batch = proposals.send(trials)
        except StopIteration:
            return
        finally:
            proposals.close()

    def _answer(self, batch: Sequence[Config]) -> list[Trial]:
        """The batch's trials in order; fewer where the measurements end within it."""
        trials = []
        for proposed in batch:
            config = self._recorded.space.canonical(proposed)
            key = self._recorded.space.key(config)
            if key not in self._seen:
                if len(self._seen) >= self._conditions.measurements:
                    break
                self._seen[key] = self._measure(config, getattr(batch, "stage", ""))
            trials.append(self._seen[key])
        return trials

    def _measure(self, config: Config, stage: str) -> Trial:
        trial = replace(self._recorded.measure(config), stage=stage)
        self._true_ms.append(trial.latency_ms)
        if not self._conditions.draws:
            return trial
        return replace(trial, latency_ms=self._recorded.draw(config, self._conditions.draws, self._rng))
