"""How long a user waits: from the start of pytest until a config as fast as the best known is in hand.

    python -m tests.benchmarks.time_to_config TEST [--seeds N] [--algorithm NAME] [--within PCT] [--recorded FILE]

Runs ``pytest TEST --autotune[=NAME]`` in a fresh process a seed, each with empty caches (ours and Triton's), on a
machine with a GPU. Afterwards the configs that were the best of a run at some time, and the three best of a recorded
space if one is given (its parameters in the same order, whatever their names), are timed interleaved in one process: a
config counts as good enough where it is within PCT percent (2) of the fastest of all of these, whatever it read during
a search. Prints a row a seed and the median; ``--json PATH`` keeps everything. TEST must hold one tunable.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

_PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--missing-baseline=warn"]
_PROBE = "tests.benchmarks.compared_configs"


def main() -> None:
    parser = argparse.ArgumentParser(description="seconds from pytest's start until a good config is in hand")
    parser.add_argument("test")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--algorithm", default="")
    parser.add_argument("--effort", default="quick")
    parser.add_argument("--within", type=float, default=2.0)
    parser.add_argument("--recorded", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = [run(options.test, seed, options.algorithm, options.effort) for seed in range(options.seeds)]
    names = list(runs[0]["trials"][0]["config"])
    known = recorded_best(options.recorded, names) if options.recorded else []
    ratios = compared(options.test, [*known, *(t["config"] for r in runs for t in progress(r))])
    least = min(ratios.values())
    rows = [row(r, ratios, least * (1 + options.within / 100)) for r in runs]
    for line in table(rows):
        print(line)  # noqa: T201
    if known:
        best = min(ratios[key(c)] for c in known)
        print(f"best recorded config: {best / least:.4f} of the fastest of all")  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "ratios": ratios, "runs": runs}, indent=1))


def run(
    test: str,
    seed: int,
    algorithm: str,
    effort: str,
    variables: Mapping[str, str] = MappingProxyType({}),
    further: Sequence[str] = (),
) -> dict[str, Any]:
    """What one fresh run did: its trials with the second after pytest's start at which each was known.

    ``variables`` come on top of an environment with empty caches, ``further`` are options of pytest's.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        env = {**os.environ, "KERNELTUNE_CACHE_DIR": f"{folder}/cache", "TRITON_CACHE_DIR": f"{folder}/triton"}
        env |= variables
        name = f"--autotune={algorithm}" if algorithm else "--autotune"
        chosen = [name, f"--autotune-seed={seed}", f"--autotune-effort={effort}", f"--autotune-json={report}"]
        began = time.time()
        done = subprocess.run([*_PYTEST, test, *chosen, *further], env=env, capture_output=True, text=True)
        wall = time.time() - began
        if not report.exists():
            raise SystemExit(done.stdout + done.stderr)
        (kernel,) = json.loads(report.read_text())["kernels"]
    start = datetime.fromisoformat(kernel["search"]["began"]).timestamp() - began
    trials = [{**t, "known_s": start + t.get("at_s", 0.0)} for t in kernel["trials"]]
    search = kernel["search"]
    return {"seed": seed, "wall_s": wall, "start_s": start, "trials": trials, "search": search, "id": kernel["id"]}


def progress(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials that were the best so far, or close to it: any of them may have been the best in truth."""
    best, found = float("inf"), []
    for trial in run["trials"]:
        latency = trial.get("latency_ms", float("inf"))
        if latency < best * 1.03:
            found.append(trial)
        best = min(best, latency)
    return [t for t in found if t["latency_ms"] <= best * 1.10]


def key(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def recorded_best(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The three best configs of a recorded space, in this kernel's names, which come in the same order."""
    space = json.loads(gzip.decompress(path.read_bytes()))
    values = list(space["params"].values())
    codes, times = (json.loads(space[k]) if isinstance(space[k], str) else space[k] for k in ("code", "time"))
    found = []
    for index in sorted((i for i, t in enumerate(times) if t), key=lambda i: times[i])[:3]:
        config, code = {}, codes[index]
        for name, choices in reversed(list(zip(names, values, strict=True))):
            code, place = divmod(code, len(choices))
            config[name] = choices[place]
        found.append({name: config[name] for name in names})
    return found


def compared(test: str, configs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Latency of each config relative to the first, all timed interleaved in one process."""
    unique = list({key(c): c for c in configs}.values())
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder, "configs.json"), Path(folder, "ratios.json")
        asked.write_text(json.dumps(unique))
        env = {**os.environ, "COMPARED_CONFIGS": str(asked), "COMPARED_RATIOS": str(answer)}
        env["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), env.get("PYTHONPATH", "")])
        done = subprocess.run([*_PYTEST, "-p", _PROBE, test], env=env, capture_output=True, text=True)
        if not answer.exists():
            raise SystemExit(done.stdout + done.stderr)
        ratios: list[float] = json.loads(answer.read_text())
    return {key(c): ratio for c, ratio in zip(unique, ratios, strict=True)}


def row(run: Mapping[str, Any], ratios: Mapping[str, float], enough: float) -> dict[str, Any]:
    good = [t for t in run["trials"] if ratios.get(key(t["config"]), float("inf")) <= enough]
    engine = run["search"]["engine"]
    seconds = run["search"]["seconds"]
    return {
        "seed": run["seed"],
        "good_s": good[0]["known_s"] if good else None,
        "configs_until": run["trials"].index(good[0]) + 1 if good else None,
        "configs": len(run["trials"]),
        "start_s": run["start_s"],
        "search_s": seconds,
        "wall_s": run["wall_s"],
        "busy": engine.get("busy_s", 0.0) / max(seconds, 1e-9),
        "cores": engine.get("compiling_s", 0.0) / max(seconds, 1e-9),
        "timing": engine.get("timing_s", 0.0) / max(seconds, 1e-9),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["seed  good after  configs  search began  searched  configs  wall    busy  cores compiling  timing"]
    for r in rows:
        good = f"{r['good_s']:8.1f} s  {r['configs_until']:7d}" if r["good_s"] is not None else "   never          -"
        lines.append(
            f"{r['seed']:4d}  {good}  {r['start_s']:10.1f} s  {r['search_s']:6.1f} s  {r['configs']:7d}"
            f"  {r['wall_s']:5.1f} s  {r['busy']:4.0%}  {r['cores']:15.1f}  {r['timing']:6.0%}"
        )
    times = [r["good_s"] if r["good_s"] is not None else float("inf") for r in rows]
    lines.append(f"median {median(times):.1f} s until good; median wall {median(r['wall_s'] for r in rows):.1f} s")
    return lines


if __name__ == "__main__":
    main()
