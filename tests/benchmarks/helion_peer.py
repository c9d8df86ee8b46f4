"""A Triton kernel of the examples tuned by Helion's external autotuner, in this process.

``python -m tests.benchmarks.helion_peer KERNEL FOUND.json [--budget SECONDS] [--seed N]`` writes the config that was
chosen, how many were tried, and every reading with the seconds from the search's start. ``peers.py`` runs it.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from pytest_kerneltune.parameter import Boolean, Choice, Integer, Parameter, PowerOfTwo
from tests.benchmarks.peers import Example, example, launcher


def fragment(parameter: Parameter) -> Any:
    """The dimension of Helion's search that has the parameter's values."""
    from helion.autotuner import config_fragment as kinds

    if isinstance(parameter, PowerOfTwo):
        return kinds.PowerOfTwoFragment(parameter.low, parameter.high, parameter.default)
    if isinstance(parameter, Integer):
        return kinds.IntegerFragment(parameter.low, parameter.high, parameter.default)
    if isinstance(parameter, Boolean):
        return kinds.BooleanFragment()
    assert isinstance(parameter, Choice)
    rest = [option for option in parameter.options if option != parameter.default]
    return kinds.EnumFragment((parameter.default, *rest))  # Helion's default is the first


def tuned(made: Example, budget: float, seed: int, log: Path) -> dict[str, Any]:
    """The chosen config."""
    from helion.autotuner import external

    def compile_fn(config: Any) -> Any:
        values = dict(config.config)
        if not made.space.is_allowed(values):
            raise ValueError("the space's constraint refuses this config")
        return launcher(made.kernel, values)

    chosen = external.autotune(
        {name: fragment(parameter) for name, parameter in made.space.parameters.items()},
        compile_fn,
        made.kernel.args,
        baseline_fn=lambda *_: made.kernel.program().reference(),  # type: ignore[misc]
        algorithm="LFBOTreeSearch",
        autotune_budget_seconds=int(budget),
        autotune_random_seed=seed,
        autotune_progress_bar=False,
        autotune_log=str(log),
    )
    return dict(chosen.config)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kernel")
    parser.add_argument("found", type=Path)
    parser.add_argument("--budget", type=float, default=110)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    made = example(options.kernel)
    log = options.found.with_name("log")
    config = tuned(made, options.budget, options.seed, log)
    with log.with_suffix(".csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] != "started"]
    readings = [
        {"at_s": float(row["timestamp_s"]), "ms": float(row["perf_ms"])}
        for row in rows
        if row["perf_ms"] not in ("", "inf", "nan")
    ]
    content = {"config": config, "attempts": len(rows), "readings": readings}
    options.found.write_text(json.dumps(content))


if __name__ == "__main__":
    main()
