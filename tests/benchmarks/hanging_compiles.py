"""What configs cost whose compiles hang: a search that meets 14 of them, in seconds and in idle GPU time.

    python -m tests.benchmarks.hanging_compiles [--hanging N] [--right N] [--jobs N]

A Triton kernel is compiled through a compiler that sleeps 100 s for some configs, as LLVM does for some tiles. Prints
when the right configs were known, when the hanging ones were given up, and what each cost. Needs a CUDA GPU.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
import triton
import triton.language as tl

from pytest_kerneltune import TritonKernel, integer
from pytest_kerneltune.backends import CompileTask
from pytest_kerneltune.backends.jit import Compiler
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Trial

_HANGS_S = 100.0


@triton.jit  # type: ignore[untyped-decorator]
def scaled(x_ptr, y_ptr, n, BLOCK: tl.constexpr, CHOICE: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    """y = x + CHOICE: every config is different code."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, at < n) + CHOICE * 0.0, at < n)


class HangingCompiler(Compiler):
    """Sleeps before it compiles a config that hangs."""

    def compile(self, keywords: Any, grid: Any) -> Any:
        if keywords["CHOICE"] < 0:
            time.sleep(_HANGS_S)
        return super().compile(keywords, grid)


class HangingKernel(TritonKernel):
    """A kernel whose configs of negative CHOICE hang the compiler."""

    def compile_task(self, config: Config) -> CompileTask:
        task = super().compile_task(config)
        return CompileTask(f"{__spec__.name}:HangingCompiler", task.target_args, task.method, task.args)


def main() -> None:
    parser = argparse.ArgumentParser(description="what configs cost whose compiles hang")
    parser.add_argument("--hanging", type=int, default=14)
    parser.add_argument("--right", type=int, default=150)
    parser.add_argument("--jobs", type=int, default=16)
    options = parser.parse_args()
    x = torch.randn(1 << 22, device="cuda")
    y = torch.empty_like(x)
    kernel = HangingKernel(
        scaled, (x, y, len(x)), (triton.cdiv(len(x), 1024),), y, lambda: x.clone(), kwargs={"BLOCK": 1024}
    )
    space = ConfigSpace({"CHOICE": integer(-options.hanging, options.right)})
    workers = Workers(options.jobs)
    bench = Benchmark(kernel, space, workers, Limits())
    bench.start()
    configs = [{"CHOICE": n} for n in range(-options.hanging, options.right)]
    start = time.monotonic()
    known: list[tuple[float, Trial]] = []
    bench.measure(configs, done=lambda trial: known.append((time.monotonic() - start, trial)))
    right = [at for at, trial in known if trial.ok]
    hung = [(at, trial.compile_s) for at, trial in known if not trial.ok]
    workers.close()
    print(f"{len(right)} right configs, the first after {right[0]:.2f} s, the last after {right[-1]:.2f} s")  # noqa: T201
    print(  # noqa: T201
        f"{len(hung)} hanging configs, each killed after {min(s for _, s in hung):.1f} to {max(s for _, s in hung):.1f}"
        f" s of its own slot, the last known after {max(at for at, _ in hung):.1f} s"
    )


if __name__ == "__main__":
    main()
