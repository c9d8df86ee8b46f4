"""What a cache hit costs, in a small cache and in a large one: ``python -m tests.benchmarks.cache_hits [--entries N]``.

Prints ms of a lookup of entries with 50, 300 and 1000 trials of 20 readings each, for a process's first lookup and for
later ones, and of a look at 500 relatives of a kernel, in a directory with nothing else and in one with 10,000 other
entries; and CPU ms of ``pytest --collect-only`` on one empty test with both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

from pytest_kerneltune.cache import Cache, Entry, Run
from pytest_kerneltune.cache.document import rendered
from pytest_kerneltune.cache.family import Family, Member
from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Trial
from tests.benchmarks.startup import cpu_ms

_SIZES = (50, 300, 1000)
_READINGS = 20
_TRIALS_OF_OTHERS = 10
_FAMILY_OF = 500
_COLD, _WARM, _STARTS = 9, 50, 7  # repeats
_LOOKUP = """
import sys, time
from pathlib import Path
from pytest_kerneltune.cache import Cache
cache = Cache(Path(sys.argv[1]), sys.exit)
start = time.perf_counter()
found = cache.lookup(sys.argv[2])
print(1e3 * (time.perf_counter() - start), len(found.trials))
"""


def entry(random: Random, trials: int, family: str = "") -> Entry:
    """An entry of one search, with values as a Triton kernel's."""
    made = tuple(_trial(random) for _ in range(trials))
    origin = {"host": "0a1b2c3d4e5f", "device": "NVIDIA H200", "torch": "2.9.0", "triton": "3.5.0"}
    run = Run("LFBOTreeSearch", Effort.QUICK, 0, True, "2025-01-31T12:00:00+00:00", made, origin=origin)
    sizes = f"{2 ** random.randint(8, 14)}, {2 ** random.randint(8, 14)}"
    winner = min(made, key=lambda trial: trial.latency_ms).config
    fingerprint = f"{random.getrandbits(256):064x}"
    return Entry(fingerprint, f"matmul[{sizes}]", (run,), winner, family, (f"x: float16[{sizes}]",))


def _trial(random: Random) -> Trial:
    readings = tuple(random.uniform(0.1, 0.2) for _ in range(_READINGS))
    blocks = {f"BLOCK_{axis}": 2 ** random.randint(4, 8) for axis in "MNK"}
    config = {**blocks, "num_warps": 2 ** random.randint(0, 4), "num_stages": random.randint(1, 5)}
    return Trial(
        config, latency_ms=statistics.median(readings), samples_ms=readings, stage="generation 3", compile_s=0.41
    )


def put(directory: Path, made: Entry) -> None:
    """Write an entry and what its family knows of it, as the cache does, but without waiting for the disk."""
    path = directory / made.fingerprint[:2] / f"{made.fingerprint}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rendered(made))


def fill(directory: Path, others: int) -> list[str]:
    """Make a cache of the entries that are looked up, a family and ``others`` more; return the former."""
    random = Random(0)
    looked_up = [entry(random, trials) for trials in _SIZES]
    relatives = [entry(random, _TRIALS_OF_OTHERS, "fa" * 32) for _ in range(_FAMILY_OF)]
    for made in (*looked_up, *relatives):
        put(directory, made)
    for made in relatives:
        member = Member(made.fingerprint, made.kernel, made.inputs, made.last.created)
        Family(directory, made.family).add(member)
    pattern = entry(random, _TRIALS_OF_OTHERS)
    for _ in range(others):
        put(directory, replace(pattern, fingerprint=f"{random.getrandbits(256):064x}"))
    return [made.fingerprint for made in looked_up]


def median_ms(act: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        act()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def cold_ms(directory: Path, fingerprint: str) -> float:
    """The first lookup of a process that has the cache's module."""
    command = [sys.executable, "-c", _LOOKUP, str(directory), fingerprint]
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(_COLD)]
    return statistics.median(float(line.split()[0]) for line in said)


def lookups(directory: Path, fingerprints: list[str]) -> str:
    cache = Cache(directory, sys.exit)
    own = Member("0" * 64, "matmul[1024, 1024]", ("x: float16[1024, 1024]",))
    lines = []
    for trials, fingerprint in zip(_SIZES, fingerprints, strict=True):
        warm = median_ms(lambda known=fingerprint: cache.lookup(known), _WARM)  # type: ignore[misc]
        lines.append(f"  {trials:5} trials: {cold_ms(directory, fingerprint):6.2f} ms cold, {warm:6.2f} ms warm")
    related = median_ms(lambda: cache.related("fa" * 32, own), 5)
    return "\n".join([*lines, f"  {_FAMILY_OF:5} relatives: {related:6.2f} ms"])


def starts(places: dict[str, Path], folder: Path) -> str:
    """CPU ms of pytest's start with each of the caches, in turn, so that what else the machine does meets all alike."""
    (folder / "test_empty.py").write_text("def test_empty():\n    pass\n")
    base = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "test_empty.py"]
    commands = {name: [*base, f"--autotune-cache={place}"] for name, place in places.items()}
    taken: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(_STARTS):
        for name, command in commands.items():
            taken[name].append(cpu_ms(command, folder))
    return "\n".join(
        f"  {name}: least {min(ms):.0f} ms, median {statistics.median(ms):.0f} ms" for name, ms in taken.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="what a cache hit costs")
    parser.add_argument("--entries", type=int, default=10_000, help="other entries in the large cache")
    others = parser.parse_args().entries
    with tempfile.TemporaryDirectory() as name:
        places = {"no other entries": Path(name, "small"), f"{others:,} others": Path(name, "large")}
        for (label, place), number in zip(places.items(), (0, others), strict=True):
            fingerprints = fill(place, number)
            print(f"{label}\n{lookups(place, fingerprints)}", flush=True)  # noqa: T201
        print(f"pytest --collect-only\n{starts(places, Path(name))}")  # noqa: T201


if __name__ == "__main__":
    main()
