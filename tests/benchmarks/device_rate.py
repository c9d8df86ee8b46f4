"""Configs a second on several equal GPUs against one, the same search, everything compiled before.

    python -m tests.benchmarks.device_rate [TEST] [--configs N] [--devices N]

Runs ``pytest TEST --autotune=RandomSearch --autotune-configs=N`` with an empty tuning cache three times: to compile
everything, then with one GPU visible, then with all; prints configs a second from the first to the last that was known.
Timing decides here: compiling is spread over the cores of the machine, however many GPUs there are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from pytest_kerneltune.devices import VISIBLE, visible_devices
from tests.benchmarks.time_to_config import run

_KEPT = {"TRITON_CACHE_DIR": str(Path.home() / ".triton" / "device-rate")}


def main() -> None:
    parser = argparse.ArgumentParser(description="configs a second on several GPUs against one")
    parser.add_argument("test", nargs="?", default="examples/test_triton_matmul.py")
    parser.add_argument("--configs", type=int, default=800)
    parser.add_argument("--devices", type=int)
    options = parser.parse_args()
    uuids = [device.uuid for device in visible_devices(os.environ)][: options.devices]
    further = [f"--autotune-configs={options.configs}", "--autotune-budget=120"]
    run(options.test, 0, "RandomSearch", "full", _KEPT, further)
    one, all_of_them = (
        rate(options.test, {**_KEPT, VISIBLE: ",".join(uuids[:count])}, further) for count in (1, len(uuids))
    )
    print(f"{len(uuids)} GPUs against 1: {all_of_them / one:.2f} times the configs a second")  # noqa: T201


def rate(test: str, variables: Mapping[str, str], further: list[str]) -> float:
    """Configs a second between the first and the last that was known."""
    done = run(test, 0, "RandomSearch", "full", variables, further)
    times = sorted(float(trial["at_s"]) for trial in done["trials"])
    found = (len(times) - 1) / (times[-1] - times[0])
    search = done["search"]
    print(  # noqa: T201
        f"{variables[VISIBLE].count(',') + 1} GPU(s): {len(times)} configs, {found:.1f} a second; search "
        f"{search['seconds']:.1f} s, timing {search['engine']['timing_s']:.1f} s summed over GPUs"
    )
    return found


if __name__ == "__main__":
    main()
