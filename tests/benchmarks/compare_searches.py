"""How fast searches find good configs, on recorded search spaces.

Run ``python -m tests.benchmarks.compare_searches FOLDER [--searches NAME ...] [--seeds=N]`` in the repository's root.
FOLDER holds ``.json.gz`` files as ``pytest_kerneltune.testing.RecordedSpace`` reads them. One table a search:

- ``f@N``: the optimum's latency over that of the best config found within N measurements, median over seeds.
- ``P@N``: how far ahead of random sampling, on average over budgets of 1 to N measurements. At one budget it is
  (random - search) / (random - optimum), cut to [-1, 1]: 0 is as good as random, 1 is the optimum. ``search`` is the
  mean latency over seeds, ``random`` the exact expectation of drawing without replacement; a run that found nothing
  that works yet counts as the space's worst latency. Budgets at which random sampling is within 0.1% of the optimum
  are left out.
- ``CPU s``: processor seconds of choosing the configs, a run.

A failed config costs a measurement; one that the static constraint refuses costs nothing and is never proposed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median

from pytest_kerneltune.driver import search_rng
from pytest_kerneltune.search import SEARCHES, Context, Effort, create
from pytest_kerneltune.testing import RecordedSpace, drive

BUDGETS = (25, 50, 100, 200)
_AT_OPTIMUM = 1e-3
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class Score:
    """A search on one space: f and P by budget, and seconds a run."""

    space: str
    found: tuple[float, ...]
    ahead: tuple[float, ...]
    cpu_s: float


def score(search: str, seeds: int, effort: Effort, path: Path) -> Score:
    """Drive ``search`` once a seed on the space recorded at ``path``."""
    recorded = RecordedSpace.load(path)
    start = time.process_time()
    curves = [best_so_far(recorded, search, effort, seed) for seed in range(seeds)]
    cpu_s = (time.process_time() - start) / seeds
    found = tuple(median(recorded.best_ms / curve[n - 1] for curve in curves) for n in BUDGETS)
    return Score(recorded.name, found, advantage(recorded, curves), cpu_s)


def best_so_far(recorded: RecordedSpace, search: str, effort: Effort, seed: int) -> list[float]:
    """The least latency in ms after each measurement; flat after the end of a search that stops by itself."""
    rng_seed = search_rng(seed, recorded.name).getrandbits(32)
    trials = drive(create(search, effort, Context()), recorded.space, recorded.measure, BUDGETS[-1], rng_seed)
    worst = recorded.latencies[-1]
    curve = list(accumulate((min(t.latency_ms, worst) for t in trials), min))
    return curve + curve[-1:] * (BUDGETS[-1] - len(curve))


def advantage(recorded: RecordedSpace, curves: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """P by budget."""
    ahead: list[float] = []
    for number, latencies in enumerate(zip(*curves, strict=True), start=1):
        by_chance = expected_best(recorded, number)
        room = by_chance - recorded.best_ms
        if room < _AT_OPTIMUM * recorded.best_ms:
            break
        ahead.append(max(-1.0, min(1.0, (by_chance - fmean(latencies)) / room)))
    return tuple(fmean(ahead[:n] or [0.0]) for n in BUDGETS)


def expected_best(recorded: RecordedSpace, draws: int) -> float:
    """Expected least latency of ``draws`` distinct configs, all equally likely; the worst where all of them failed."""
    none_better, expectation = 1.0, 0.0
    for rank, latency in enumerate(recorded.latencies, start=1):
        left = len(recorded) - rank
        still_none = none_better * max(0, left + 1 - draws) / (left + 1)
        expectation += latency * (none_better - still_none)
        none_better = still_none
        if none_better < _NEGLIGIBLE:
            break
    return expectation + recorded.latencies[-1] * none_better


def table(search: str, scores: Sequence[Score]) -> str:
    """The scores as text, a space a line and their mean."""
    mean = Score(
        "mean",
        tuple(map(fmean, zip(*(s.found for s in scores), strict=True))),
        tuple(map(fmean, zip(*(s.ahead for s in scores), strict=True))),
        fmean(s.cpu_s for s in scores),
    )
    head = [f"{letter}@{n}" for letter in "fP" for n in BUDGETS]
    lines = [f"{search:<36}" + "".join(f"{h:>8}" for h in [*head, "CPU s"])]
    lines += [
        f"{s.space:<36}" + "".join(f"{x:8.3f}" for x in (*s.found, *s.ahead)) + f"{s.cpu_s:8.2f}"
        for s in [*scores, mean]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare searches on recorded search spaces.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=["LFBOTreeSearch", "RandomSearch"])
    parser.add_argument("--spaces", nargs="+", help="names of spaces; default: every one in the folder")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--effort", type=Effort, choices=[Effort.QUICK, Effort.FULL], default=Effort.FULL)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    paths = sorted(options.folder.glob("*.json.gz"))
    paths = [p for p in paths if not options.spaces or p.name.removesuffix(".json.gz") in options.spaces]
    with ProcessPoolExecutor(options.jobs) as pool:
        for search in options.searches:
            scores = list(pool.map(partial(score, search, options.seeds, options.effort), paths))
            print(table(search, scores), end="\n\n", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
