"""A kernel of the examples tuned by Helion's autotuner and by ours, and the winners timed side by side.

Run ``python -m tests.benchmarks.peers KERNEL ... [--budget SECONDS] [--seed N] [--recordings FOLDER] [--plain]`` in the
repository's root, on a machine with a CUDA GPU and helion; KERNEL is matmul, softmax or layer_norm. Each tuner runs in
a process of its own with empty caches and the same space (and with ``--keep FOLDER`` only where FOLDER has no result of
that tuner yet; ``--only TUNER`` runs one and compares nothing):

- Helion's ``autotune(tunables, compile_fn, args)`` with its LFBOTreeSearch (``helion_peer.py``). Configs that the
  space's constraint refuses cost it nothing: its ``compile_fn`` raises.
- ours: ``pytest examples/test_triton_KERNEL.py --autotune``, as a user runs it (with PYTEST_ADDOPTS, if set).
- Triton's ``@triton.autotune`` over 16 configs drawn from the space, as a measure of no search at all (``--plain``).

Wall seconds are those of the whole process; "near best after" is when, counted from the search's start, the first
config was timed that is within 2% of the fastest reading of that run. Then the winners, and the best config of the
recorded space where FOLDER has one, are timed interleaved in a fresh process; a ratio is to Helion's winner, with its
99% interval.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest_kerneltune
from pytest_kerneltune.backends.triton import TritonKernel
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.recorded import RecordedSpace
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.statistics import log_ratios, median_interval
from pytest_kerneltune.trial import Config, Status

ROOT = Path(__file__).parents[2]
BLOCKS = 40
_NEAR = 1.02
_PLAIN = 16  # configs of the run without a search
_RECORDED_NAMES = {"PERSIST": "PROGRAMS_PER_SM"}  # what a recording calls a parameter, and what the example does


@dataclass(frozen=True)
class Example:
    """A kernel of the examples with its space, and the module that holds them."""

    name: str
    kernel: TritonKernel
    space: ConfigSpace
    module: ModuleType


@dataclass(frozen=True)
class Tuned:
    """What a tuner found: seconds are wall time, ``attempts`` the configs that it compiled or tried to."""

    config: Config
    wall_s: float
    attempts: int
    near_best_s: float


def example(name: str) -> Example:
    """The kernel of ``examples/test_triton_NAME.py``, without pytest."""
    import torch

    sys.path.insert(0, str(ROOT / "examples"))
    declared: dict[str, Any] = {}

    def tunable(**given: Any) -> Callable[[Any], Any]:
        def keep(function: Any) -> Any:
            declared.update(given, make=function)
            return function

        return keep

    original, pytest_kerneltune.tunable = pytest_kerneltune.tunable, tunable
    try:
        module = import_module(f"test_triton_{name}")
    finally:
        pytest_kerneltune.tunable = original
    space = ConfigSpace(declared["space"], declared.get("where"))
    return Example(name, declared["make"](torch.device("cuda")), space, module)


def clean_environment(folder: Path) -> dict[str, str]:
    """This process's environment, with empty caches in ``folder``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KERNELTUNE_", "HELION_"))}
    return {
        **kept,
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "HELION_CACHE_DIR": str(folder / "helion"),
        "KERNELTUNE_CACHE_DIR": str(folder / "cache"),
    }


def run(command: Sequence[str], folder: Path) -> float:
    """Runs ``command`` with empty caches; its wall seconds. The end of its output is shown if it fails."""
    start = time.monotonic()
    with (folder / "output").open("w") as file:
        done = subprocess.run(command, cwd=ROOT, env=clean_environment(folder), stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        print((folder / "output").read_text()[-4000:], flush=True)  # noqa: T201
    return time.monotonic() - start


def tuned(tuner: str, name: str, options: argparse.Namespace) -> Tuned:
    """What a tuner finds, or found in an earlier run."""
    kept = options.keep / f"{name}-{tuner}-{options.budget:g}s-{options.seed}.json" if options.keep else None
    if kept is not None and kept.exists():
        return Tuned(**json.loads(kept.read_text()))
    with tempfile.TemporaryDirectory() as folder:
        found = TUNERS[tuner](name, options, Path(folder))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(found)))
    return found


def by_helion(name: str, options: argparse.Namespace, folder: Path) -> Tuned:
    command = [sys.executable, "-m", "tests.benchmarks.helion_peer", name, str(folder / "found.json")]
    wall_s = run([*command, "--budget", str(options.budget), "--seed", str(options.seed)], folder)
    found = json.loads((folder / "found.json").read_text())
    readings = [(row["at_s"], row["ms"]) for row in found["readings"]]
    return Tuned(found["config"], wall_s, found["attempts"], _near_best(readings))


def by_us(name: str, options: argparse.Namespace, folder: Path) -> Tuned:
    report = folder / "report.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        f"examples/test_triton_{name}.py",
        "--autotune",
    ]
    search = ["--autotune", f"--autotune-budget={options.budget}", f"--autotune-seed={options.seed}"]
    reports = [f"--autotune-json={report}", f"--baseline-dir={folder / 'baselines'}"]
    wall_s = run([*command, *search, *reports], folder)
    (kernel,) = json.loads(report.read_text())["kernels"]
    readings = [(t.get("at_s", 0.0), t["latency_ms"]) for t in kernel["trials"] if "latency_ms" in t]
    return Tuned(kernel["config"], wall_s, kernel["search"]["attempts"], _near_best(readings))


TUNERS = {"helion": by_helion, "ours": by_us}


def by_no_search(made: Example, seed: int) -> Tuned:
    """The fastest of a few configs drawn from the space, as ``@triton.autotune`` finds it."""
    import triton
    from triton.testing import do_bench

    configs = made.space.sample_new(random.Random(seed), _PLAIN, set())
    start, readings = time.monotonic(), []
    for config in configs:
        try:
            launch = launcher(made.kernel, config)
            readings.append((do_bench(lambda launch=launch: launch(*made.kernel.args), 25, 100), config))
        except triton.runtime.errors.OutOfResources:
            continue
    wall_s = time.monotonic() - start
    return Tuned(min(readings, key=lambda pair: pair[0])[1], wall_s, len(configs), wall_s)


def launcher(kernel: TritonKernel, config: Config) -> Callable[..., Any]:
    """A plain function of the kernel's arguments that launches ``config`` and returns the output among them."""
    output = kernel.program().written()
    position = next(i for i, argument in enumerate(kernel.args) if argument is output)
    values = {**kernel.kwargs, **config}
    grid = kernel.grid(values) if callable(kernel.grid) else kernel.grid

    def launch(*args: Any) -> Any:
        kernel.fn[grid](*args, **values)
        return args[position]

    return launch


def recorded_best(path: Path, space: ConfigSpace) -> Config:
    """The fastest config of a recorded space."""
    recorded = RecordedSpace.load(path)
    trials = map(recorded.measure, recorded.space.enumerate())
    best = min((t for t in trials if t.status is Status.OK), key=lambda trial: trial.latency_ms)
    return space.canonical({_RECORDED_NAMES.get(name, name): value for name, value in best.config.items()})


def side_by_side(made: Example, configs: Mapping[str, Config]) -> dict[str, list[float]]:
    """Readings in ms of each config and of the reference, interleaved."""
    workers = Workers(len(configs))
    try:
        bench = Benchmark(made.kernel, made.space, workers, Limits(), modules=(made.module,))
        bench.start()
        values = bench.compare(configs, True, BLOCKS)
    finally:
        workers.close()
    return values


def compared(made: Example, found: Mapping[str, Tuned], best: Config | None) -> str:
    """The table of one kernel."""
    configs = {name: made.space.canonical(tuned.config) for name, tuned in found.items()}
    values = side_by_side(made, configs if best is None else {**configs, "recorded best": best})
    base = next(iter(found))
    lines = [f"{made.name}:", f"  {'':<16}{'wall s':>8}{'near best after':>17}{'configs':>9}{'ms':>10}  ratio (99%)"]
    for name, readings in values.items():
        tuned = found.get(name)
        ms = median_interval(readings, 0.99).estimate
        ratio = median_interval(log_ratios(readings, values[base]), 0.99)
        cells = f"{tuned.wall_s:8.1f}{tuned.near_best_s:17.1f}{tuned.attempts:9d}" if tuned else " " * 34
        shown = f"{100 * ratio.estimate:+.2f}% [{100 * ratio.low:+.2f}, {100 * ratio.high:+.2f}]"
        lines.append(f"  {name:<16}{cells}{ms:10.5f}  {shown}")
    return "\n".join([*lines, *(f"  {name}: {dict(config)}" for name, config in configs.items())])


def _near_best(readings: Sequence[tuple[float, float]]) -> float:
    best = min((ms for _, ms in readings), default=float("nan"))
    return min((at for at, ms in readings if ms <= _NEAR * best), default=float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="+", choices=("matmul", "softmax", "layer_norm"))
    parser.add_argument("--budget", type=float, default=110)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recordings", type=Path, help="a folder with recorded spaces, triton_KERNEL_*.json.gz")
    parser.add_argument("--plain", action="store_true", help="also the best of 16 drawn configs")
    parser.add_argument("--keep", type=Path, help="a folder for what the tuners find")
    parser.add_argument("--only", choices=sorted(TUNERS))
    options = parser.parse_args()
    for name in options.kernels:
        found = {tuner: tuned(tuner, name, options) for tuner in TUNERS if options.only in (None, tuner)}
        if options.only:
            print(name, found, flush=True)  # noqa: T201
            continue
        made = example(name)
        if options.plain:
            found[f"best of {_PLAIN}"] = by_no_search(made, options.seed)
        files = sorted(options.recordings.glob(f"triton_{name}_*.json.gz")) if options.recordings else []
        best = recorded_best(files[0], made.space) if files else None
        print(compared(made, found, best), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
