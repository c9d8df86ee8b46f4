"""Configs a second on several equal GPUs against one, the same search, everything compiled before.

    PYTHONPATH=examples python -m tests.benchmarks.device_rate TEST [--devices N] [--algorithm NAME]

Runs ``pytest TEST --autotune=NAME`` (FiniteSearch) with an empty tuning cache three times: once to compile everything,
then with one GPU visible and with all (or N); prints configs a second of the search without its start, which each run
has alike. Timing decides here, since compiling is spread over the cores of the machine, however many GPUs there are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from pytest_kerneltune.devices import VISIBLE, visible_devices
from tests.benchmarks.time_to_config import run


def main() -> None:
    parser = argparse.ArgumentParser(description="configs a second on several GPUs against one")
    parser.add_argument("test")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--algorithm", default="FiniteSearch")
    options = parser.parse_args()
    uuids = [device.uuid for device in visible_devices(os.environ)][: options.devices]
    triton_cache = {"TRITON_CACHE_DIR": os.path.expanduser("~/.triton/device-rate")}  # noqa: PTH111
    run(options.test, 0, options.algorithm, "full", triton_cache)
    rates = [
        rate(options.test, options.algorithm, {**triton_cache, VISIBLE: ",".join(uuids[:n])}) for n in (1, len(uuids))
    ]
    print(f"{len(uuids)} GPUs against 1: {rates[1] / rates[0]:.2f} times the configs a second")  # noqa: T201


def rate(test: str, algorithm: str, variables: Mapping[str, str]) -> float:
    """Configs a second between the first and the last that was known."""
    done = run(test, 0, algorithm, "full", variables)
    times = sorted(trial["at_s"] for trial in done["trials"])
    found = (len(times) - 1) / (times[-1] - times[0])
    engine = done["search"]["engine"]
    print(  # noqa: T201
        f"{variables[VISIBLE].count(',') + 1} GPU(s): {len(times)} configs, {found:.1f} a second; search "
        f"{done['search']['seconds']:.1f} s, timing {engine['timing_s']:.1f} s summed over GPUs"
    )
    return found


if __name__ == "__main__":
    main()
