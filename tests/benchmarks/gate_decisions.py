"""Gate decisions on unchanged kernels of the examples: ``python -m tests.benchmarks.gate_decisions [SESSIONS [EACH]]``.

A baseline is measured in one GPU worker; then SESSIONS fresh workers make EACH decisions on the same kernel and config.
Prints how often each verdict was given, how far the changes scattered, and what a decision took. Needs a CUDA GPU.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from pytest_kerneltune.backends.triton import TritonKernel
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.gate import Policy
from pytest_kerneltune.gpu import GpuWatch, cuda_device
from pytest_kerneltune.judging import Contract, Watch, measure
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.record import measured_baseline
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


def kernels() -> Mapping[str, tuple[TritonKernel, Config]]:
    import torch
    from kernels.layer_norm import layer_norm_kernel
    from kernels.matmul import matmul_kernel
    from kernels.softmax import softmax_kernel

    a, b = torch.randn(2, 4096, 4096, device="cuda", dtype=torch.bfloat16)
    c = torch.empty_like(a)
    x = torch.randn(16384, 1500, device="cuda", dtype=torch.float16)
    y = torch.empty_like(x)
    u = torch.randn(4096, 8192, device="cuda", dtype=torch.bfloat16)
    weight, bias = torch.randn(2, 8192, device="cuda", dtype=torch.bfloat16)
    v = torch.empty_like(u)
    strides = (*a.stride(), *b.stride(), *c.stride())
    tiles: dict[str, Any] = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64, "GROUP_M": 8, "num_warps": 8}
    rows: dict[str, Any] = {"ROWS": 1, "STAGES": 1, "PROGRAMS_PER_SM": 0, "num_warps": 4}
    norm: dict[str, Any] = {"ROWS": 1, "BLOCK_N": 8192, "EVICT": "", "num_warps": 16, "num_stages": 1}
    matmul = TritonKernel(matmul_kernel, (a, b, c, 4096, 4096, 4096, *strides), (32 * 16,), c, lambda: a @ b)
    softmax = TritonKernel(
        softmax_kernel, (x, y, 16384, 1500), (16384,), y, lambda: torch.softmax(x, -1), kwargs={"BLOCK": 2048}
    )
    layer_norm = TritonKernel(
        layer_norm_kernel,
        (u, weight, bias, v, 4096, 8192, 1e-5),
        (4096,),
        v,
        lambda: torch.nn.functional.layer_norm(u, (8192,), weight, bias, 1e-5),
    )
    return {
        "matmul": (matmul, {**tiles, "num_stages": 3}),
        "softmax": (softmax, rows),
        "layer_norm": (layer_norm, norm),
    }


def decisions(kernel: TritonKernel, config: Config, sessions: int, each: int, workers: Workers) -> str:
    device = cuda_device()
    watch: Any = partial(GpuWatch, device.uuid)
    typed: type[AbstractContextManager[Watch]] = watch
    bench = Benchmark(kernel, ConfigSpace({}), workers, Limits())
    contract, policy = Contract({"method": bench.start()}, "cuda", typed), Policy()
    first = measure(bench, config, None, contract, policy)
    baseline = measured_baseline(first.blocks, config, contract.facts, {})
    kinds: Counter[str] = Counter()
    changes, seconds = [], []
    for _ in range(sessions):
        bench.restart()
        bench.start()
        for _ in range(each):
            start = time.monotonic()
            verdict = measure(bench, config, baseline, contract, policy).verdict(baseline, contract, policy)
            seconds.append(time.monotonic() - start)
            kinds[verdict.kind.value] += 1
            changes += [abs(verdict.change.estimate)] if verdict.change else []
    far = 100 * max(changes, default=float("nan"))
    return f"{dict(kinds)}, largest change {far:.2f}%, {statistics.median(seconds):.2f} s a decision (median)"


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sessions, each = [*given, *(5, 20)[len(given) :]]
    shared = Workers(1)
    try:
        for name, (kernel, config) in kernels().items():
            print(f"{name}: {decisions(kernel, config, sessions, each, shared)}", flush=True)  # noqa: T201
    finally:
        shared.close()
