"""The gate's self-test on kernels of the examples: ``python -m tests.benchmarks.gate_decisions [DECISIONS [PERCENT]]``.

Decisions of each kind (default 20) on each kernel beside itself and beside itself slowed, by a threshold of PERCENT
(default 3), as ``--gate-self-test`` makes them. Needs a CUDA GPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pytest_kerneltune.backends.slowed import SlowedKernel
from pytest_kerneltune.backends.triton import TritonKernel
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.gate import Policy
from pytest_kerneltune.gpu import cuda_device
from pytest_kerneltune.guard import Guard
from pytest_kerneltune.judging import METHOD, Contract
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.report.selftest import table
from pytest_kerneltune.selftest import self_test
from pytest_kerneltune.selftest_summary import SelfTest
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


def tested(kernel: TritonKernel, config: Config, decisions: int, policy: Policy, workers: Workers) -> SelfTest:
    """The self-test of one kernel."""
    bench = Benchmark(SlowedKernel(kernel), ConfigSpace({}), workers, Limits())
    bench.start()
    contract = Contract(
        {METHOD: bench.method(config)},
        "cuda",
        partial(Guard, "cuda", lambda: bench.pid, os.environ, cuda_device().uuid),
    )
    return self_test(bench, config, contract, policy, decisions)


def main(decisions: int = 20, percent: float = 3.0) -> None:
    workers = Workers(1)
    try:
        found = {
            name: tested(kernel, config, decisions, Policy(threshold=percent / 100), workers)
            for name, (kernel, config) in kernels().items()
        }
        print("\n".join(line.text for line in table(found, 200)))  # noqa: T201
    finally:
        workers.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *map(float, sys.argv[2:3]))
