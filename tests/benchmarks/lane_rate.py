"""How the measuring engine itself scales with devices: configs a second with one, two and four that are made up.

    python -m tests.benchmarks.lane_rate [--configs N] [--jobs N] [--timing MS] [--compiling MS]

Everything is real but what a device and a compiler do, which is to sleep: worker processes, pipes, the devices' locks,
the driver and RandomSearch. Needs no GPU; on a machine with few cores the processes themselves get in each other's way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_kerneltune import integer
from pytest_kerneltune.backends import Build, CompileTask, Description, Kernel
from pytest_kerneltune.benchmark import Benchmark, Limits, Site
from pytest_kerneltune.driver import Driver, search_rng
from pytest_kerneltune.launcher import Launcher, RemoteLauncher, Workers
from pytest_kerneltune.search import Context, Effort, create
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Budget, Clock, Config
from pytest_kerneltune.turns import DeviceTurn
from pytest_kerneltune.worker import Service, Worker

_HERE = "tests.benchmarks.lane_rate"


class MadeUpStation:
    """Answers as a station does, after a sleep."""

    def __init__(self, timing_s: float) -> None:
        self._timing_s = timing_s

    def healthy(self) -> bool:
        return True

    def expect(self) -> str:
        return "sleep"

    def reference_ms(self) -> float:
        return 0.1

    def check_and_time(self, config: Config, artifact: Any, best_ms: float) -> tuple[str | None, list[float]]:
        time.sleep(self._timing_s)
        return None, [1.0 + config["n"] * 7919 % 1000 / 1000] * 8

    def compare(self, arms: Mapping[str, Any], yardsticks: bool, blocks: int, method: str = "") -> dict[str, Any]:
        time.sleep(2 * self._timing_s)
        return {name: [1.0] * blocks for name in arms}


class MadeUpCompiler:
    """Compiles nothing, after a sleep."""

    def compile(self, n: int, seconds: float) -> Build:
        time.sleep(seconds)
        return Build(n)


@dataclass
class MadeUpKernel(Kernel):
    """A kernel on made-up devices."""

    compiling_s: float
    kind = "made up"
    isolated = True

    @property
    def clock(self) -> Clock:
        return "cuda"

    def describe(self) -> Description:
        return Description(self.kind)

    def compile_task(self, config: Config) -> CompileTask:
        return CompileTask(f"{_HERE}:MadeUpCompiler", (), "compile", (config["n"], self.compiling_s))

    def program(self) -> Any:
        raise NotImplementedError("it runs nowhere")

    def packed(self, by_value: Sequence[Any]) -> bytes:
        return b""

    def launch_env(self) -> Mapping[str, str]:
        return {}

    def __call__(self, config: Config, artifact: Any) -> Any:
        raise NotImplementedError("it runs nowhere")


class MadeUpLauncher(RemoteLauncher):
    """A real worker process with a made-up station."""

    def __init__(self, kernel: Kernel, worker: Worker, timing_s: float) -> None:
        super().__init__(kernel, worker, ())
        self._service = Service(f"{_HERE}:MadeUpStation", (timing_s,))


class MadeUpDevices(Workers):
    """Real compile workers; a launching worker a site."""

    timing_s = 0.0

    def launcher(self, kernel: Kernel, modules: Sequence[Any], env: Mapping[str, str] = {}) -> Launcher:
        return MadeUpLauncher(kernel, Worker(env), self.timing_s)


def main() -> None:
    parser = argparse.ArgumentParser(description="configs a second of the engine with made-up devices")
    parser.add_argument("--configs", type=int, default=700)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--timing", type=float, default=8.4)
    parser.add_argument("--compiling", type=float, default=20.0)
    options = parser.parse_args()
    space = ConfigSpace({"n": integer(0, 100_000)})
    for count in (1, 2, 4):
        workers = MadeUpDevices(options.jobs)
        workers.timing_s = options.timing / 1e3
        sites = [Site({"PLACE": str(i)}, DeviceTurn(f"made-up-{i}")) for i in range(count)]
        bench = Benchmark(MadeUpKernel(options.compiling / 1e3), space, workers, Limits(), sites)
        bench.spread()
        bench.start()
        search = create("RandomSearch", Effort.FULL, Context(parallel=options.jobs + 2))
        run = Driver(bench, space, Budget(configs=options.configs)).drive(search, search_rng(0, "made up"))
        times = [trial.at_s for trial in run.trials]
        rate = (len(times) - 1) / (max(times) - min(times))
        print(f"{count} device(s): {len(times)} configs, {rate:.0f} a second")  # noqa: T201
        bench.close()
        workers.close()


if __name__ == "__main__":
    main()
