"""How soon a search finds a good config where many cores compile while one GPU times: an event simulation.

Run ``python -m tests.benchmarks.pipeline_simulation FOLDER [--searches NAME ...] [--spaces PATTERN ...]`` in the
repository's root; FOLDER holds recorded spaces, and ``--help`` lists more options. It prints for each search and space
the wall seconds until a config within ``--within`` percent of the best recorded one was timed (median and upper
quartile over seeds, inf where most runs did not find one within ``--limit`` seconds or the search's own end), how many
configs were known by then, the seconds that the search had thought, and how many milliseconds that was each time.

The model: ``--slots`` cores compile in the order in which configs are proposed, from the start on; from ``--ready``
seconds on a GPU times what is compiled, ``--timing`` seconds each. A compile takes what was recorded, but
at least a log-normal time (median ``--compile`` seconds) drawn by a hash of the config, since some recordings only
looked into a cache; it is killed after ``--kill`` seconds. A search thinks as long as its thread takes processor time
here, times ``--thinking``; compiling and timing go on meanwhile. The driver sends trials as ``trial.Batch.enough``
says, or with ``--barriers`` all of a batch at once. With ``--demands`` a trial of the space of matrix products says
what share of an H200's shared memory it asks for.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import math
import random
import sys
import time
from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from functools import cache
from itertools import product
from pathlib import Path
from statistics import median

from pytest_kerneltune.driver import search_rng
from pytest_kerneltune.recorded import SUFFIX, RecordedSpace, code_weights
from pytest_kerneltune.search import DEFAULT_SEARCH, Context, Effort, Proposals, create
from pytest_kerneltune.search.fallback import following
from pytest_kerneltune.trial import Config, Status, Trial

_SHARED_BYTES = 232_448  # of a block, at most, on an H200
_DEFAULTS = {
    "slots": 16,
    "ready": 3.0,
    "timing": 0.015,
    "compile": 1.2,
    "kill": 12.0,
    "thinking": 1.0,
    "limit": 90.0,
}
_UNTIMED = (Status.COMPILE_ERROR, Status.COMPILE_TIMEOUT, Status.OUT_OF_RESOURCES)


@dataclass(frozen=True)
class Machine:
    """What the options of the command say; see the module."""

    slots: int
    ready: float
    timing: float
    compile: float
    kill: float
    thinking: float
    limit: float
    barriers: bool
    demands: bool


@dataclass(frozen=True)
class Found:
    """When a good config was timed (inf: never), how many configs were known and how long the search had thought."""

    seconds: float
    known: int
    thought: float
    batches: int


class Kernel:
    """A recorded space with the time that each config's compile takes."""

    def __init__(self, path: Path, machine: Machine) -> None:
        self.recorded, self._machine = RecordedSpace.load(path), machine
        with gzip.open(path, "rt", encoding="utf-8") as file:
            data = json.load(file)
        seconds = data.get("compile_s") or [0.0] * len(data["code"])
        self._seconds: Mapping[int, float] = dict(zip(data["code"], seconds, strict=True))
        self._weights = code_weights(data["params"])

    def compile_s(self, config: Config) -> float:
        code = sum(weight(config[name]) for name, weight in self._weights.items())
        drawn = random.Random(code).lognormvariate(math.log(self._machine.compile), 0.5)
        return min(self._machine.kill, max(drawn, self._seconds[code] or 0.0))

    def trial(self, config: Config) -> Trial:
        trial = self.recorded.measure(config)
        return replace(trial, demand=_demand(config)) if self._machine.demands else trial


def _demand(config: Config) -> float:
    """The share of shared memory that the operands of a product take in 16-bit numbers; 0 for another kernel."""
    if not {"BLOCK_M", "BLOCK_N", "BLOCK_K", "num_stages"} <= config.keys():
        return 0.0
    tiles = (config["BLOCK_M"] + config["BLOCK_N"]) * config["BLOCK_K"] * 2
    return float(config["num_stages"] * tiles / _SHARED_BYTES)


class Pipeline:
    """Compilers and a GPU, and what is under way in them."""

    def __init__(self, kernel: Kernel, machine: Machine) -> None:
        self._kernel, self._machine = kernel, machine
        self._slots = [0.0] * machine.slots
        self._idle_from = machine.ready
        self._compiled: list[tuple[float, int, Config]] = []
        self._timed: list[tuple[float, int, Trial]] = []
        self._count = 0

    def start(self, configs: Sequence[Config], now: float) -> None:
        for config in configs:
            end = max(now, heapq.heappop(self._slots)) + self._kernel.compile_s(config)
            heapq.heappush(self._slots, end)
            heapq.heappush(self._compiled, (end, self._count, config))
            self._count += 1

    def wait(self, count: int, now: float) -> tuple[float, list[tuple[float, Trial]]]:
        """The time at which ``count`` trials are known, at least ``now``, and those known by then, with their times."""

        def due() -> float:
            return math.inf if count > len(self._timed) else max(now, self._timed[count - 1][0]) if count else now

        while self._compiled and self._compiled[0][0] <= due():
            self._time_next()
        taken = [(at, trial) for at, _, trial in self._timed if at <= due()]
        then, self._timed = due(), self._timed[len(taken) :]
        return then, taken

    def _time_next(self) -> None:
        end, number, config = heapq.heappop(self._compiled)
        trial = self._kernel.trial(config)
        if trial.status not in _UNTIMED:
            self._idle_from = end = max(end, self._idle_from) + self._machine.timing
        insort(self._timed, (end, number, trial))


class Run:
    """A search on a kernel, until it has found a config of ``good_ms``, has ended, or the time is up."""

    def __init__(self, kernel: Kernel, machine: Machine, good_ms: float) -> None:
        self._machine, self._good_ms = machine, good_ms
        self._pipeline = Pipeline(kernel, machine)
        self._now, self._thought = 0.0, 0.0
        self._known = self._batches = self._under_way = 0

    def play(self, proposals: Proposals) -> Found:
        trials: list[tuple[float, Trial]] = []
        while self._now < self._machine.limit:
            batch = self._thinking(proposals, [trial for _, trial in trials])
            trials = self._answer(batch)
            for at, trial in trials:
                self._known += 1
                if trial.latency_ms <= self._good_ms:
                    return Found(at, self._known, self._thought, self._batches)
            if batch is None:
                break
        return Found(math.inf, self._known, self._thought, self._batches)

    def _thinking(self, proposals: Proposals, trials: list[Trial]) -> Sequence[Config] | None:
        """What the search proposes next, None where it ended, and the time goes on."""
        start = time.thread_time()
        batch = following(proposals, trials) if self._batches else next(proposals)
        spent = self._machine.thinking * (time.thread_time() - start)
        self._now, self._thought, self._batches = self._now + spent, self._thought + spent, self._batches + 1
        return batch

    def _answer(self, batch: Sequence[Config] | None) -> list[tuple[float, Trial]]:
        """The trials that the driver would send, each with the time at which it was known."""
        self._pipeline.start(batch or (), self._now)
        self._under_way += len(batch or ())
        enough = None if self._machine.barriers else getattr(batch, "enough", None)
        count = self._under_way if enough is None else min(enough, self._under_way)
        self._now, trials = self._pipeline.wait(count, self._now)
        self._under_way -= len(trials)
        return trials


@cache
def _kernel(path: Path, machine: Machine) -> Kernel:
    return Kernel(path, machine)


def found(path: Path, machine: Machine, search: str, parallel: int, seeds: int, within: float) -> Iterator[Found]:
    kernel = _kernel(path, machine)
    for seed in range(seeds):
        made = create(search, Effort.QUICK, Context(parallel=parallel))
        rng = search_rng(seed, kernel.recorded.name)
        good_ms = kernel.recorded.best_ms * (1 + within / 100)
        yield Run(kernel, machine, good_ms).play(made.propose(kernel.recorded.space, rng))


def _row(search: str, path: Path, runs: Sequence[Found]) -> str:
    seconds = [r.seconds for r in runs]
    upper = sorted(seconds)[math.ceil(0.75 * len(seconds)) - 1]
    known, thought = median(r.known for r in runs), median(r.thought for r in runs)
    each_ms = 1000 * sum(r.thought for r in runs) / sum(r.batches for r in runs)
    name = path.name.removesuffix(SUFFIX)
    return f"{search:28} {name:34} {median(seconds):8.1f} {upper:8.1f} {known:8.0f} {thought:8.2f} {each_ms:8.0f}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path)
    add("--searches", nargs="+", default=[DEFAULT_SEARCH])
    add("--spaces", nargs="+", default=["triton_*"])
    add("--seeds", type=int, default=15)
    add("--parallel", type=int, default=18, help="how many configs a search is told to keep under way")
    add("--within", type=float, default=2.0, help="percent")
    for name, value in _DEFAULTS.items():
        add(f"--{name}", type=type(value), default=value)
    for name in ("barriers", "demands"):
        add(f"--{name}", action="store_true")
    return parser


def main(arguments: Sequence[str]) -> None:
    given = _parser().parse_args(arguments)
    machine = Machine(**{field.name: getattr(given, field.name) for field in fields(Machine)})
    paths = [p for p in sorted(given.folder.glob(f"*{SUFFIX}")) if any(fnmatch(p.name, f"{s}*") for s in given.spaces)]
    titles = ("median s", "upper s", "configs", "thought", "ms each")
    sys.stdout.write(f"{'search':28} {'space':34} {' '.join(f'{title:>8}' for title in titles)}\n")
    for search, path in product(given.searches, paths):
        runs = list(found(path, machine, search, given.parallel, given.seeds, given.within))
        sys.stdout.write(_row(search, path, runs))
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
