"""How fast configs compile: ``python -m tests.benchmarks.compile_rate KERNEL [--configs N] [--jobs J] [--seed S]``.

Compiles N random configs of an example kernel (softmax or matmul, in its example's space) for an H200, which need not
be there, with J worker processes and an empty cache. Prints seconds until the workers were ready, configs a second from
then on and with the start counted, seconds of one config, and how many configs had the machine code of another one.
"""

from __future__ import annotations

import argparse
import collections
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pytest_kerneltune.backends import CompileTask
from pytest_kerneltune.backends.toolchain import OfflineDriver, Target
from pytest_kerneltune.backends.triton import TritonKernel
from pytest_kerneltune.parameter import Parameter, choice, integer, power_of_two
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.worker import Reply, Service, Worker, wait_any

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS, COLUMNS, BLOCK = 16384, 1500, 2048
N = 4096
MULTIPROCESSORS = 132
LIMIT_S = 30.0
H200 = Target("cuda", 90, 32, shared_bytes=232448)


def softmax() -> tuple[TritonKernel, ConfigSpace]:
    import torch
    from kernels.softmax import softmax_kernel

    def grid(config: Mapping[str, Any]) -> tuple[int]:
        blocks, programs = -(-ROWS // config["ROWS"]), config["PROGRAMS_PER_SM"] * MULTIPROCESSORS
        return (min(blocks, programs) if programs else blocks,)

    x = torch.empty(ROWS, COLUMNS, dtype=torch.float16)
    kernel = TritonKernel(softmax_kernel, (x, torch.empty_like(x), ROWS, COLUMNS), grid, kwargs={"BLOCK": BLOCK})
    parameters: dict[str, Parameter] = {
        "ROWS": power_of_two(1, 16),
        "STAGES": integer(1, 4),
        "PROGRAMS_PER_SM": choice(0, 1, 2, 4, 8, 16),
        "num_warps": power_of_two(1, 32),
    }
    return kernel, ConfigSpace(parameters, lambda c: c["ROWS"] * BLOCK <= 256 * 32 * c["num_warps"])


def matmul() -> tuple[TritonKernel, ConfigSpace]:
    import torch
    from kernels.matmul import matmul_kernel

    a, b, c = (torch.empty(N, N, dtype=torch.bfloat16) for _ in range(3))
    args = (a, b, c, N, N, N, *a.stride(), *b.stride(), *c.stride())
    kernel = TritonKernel(matmul_kernel, args, lambda c: (-(-N // c["BLOCK_M"]) * -(-N // c["BLOCK_N"]),))
    parameters: dict[str, Parameter] = {
        "BLOCK_M": power_of_two(32, 256),
        "BLOCK_N": power_of_two(32, 256),
        "BLOCK_K": power_of_two(32, 128),
        "GROUP_M": choice(1, 8),
        "num_warps": power_of_two(2, 16),
        "num_stages": integer(1, 5),
    }
    return kernel, ConfigSpace(parameters, lambda c: c["BLOCK_M"] * c["BLOCK_N"] <= 256 * 32 * c["num_warps"])


KERNELS = {"softmax": softmax, "matmul": matmul}


def warmed(workers: Sequence[Worker], task: CompileTask) -> float:
    """Seconds until the workers could compile: the median, from when all were begun."""
    service, begin = Service(task.target, task.target_args), time.monotonic()
    for worker in workers:
        worker.submit(service, "warm", timeout=LIMIT_S)
    seconds = []
    while any(worker.busy for worker in workers):
        wait_any(workers, LIMIT_S)
        seconds += [time.monotonic() - begin for w in workers if w.busy and w.poll() is not None]
    return statistics.median(seconds)


def replies(workers: Sequence[Worker], tasks: Sequence[CompileTask]) -> Iterator[Reply]:
    """Of all tasks, in the order in which they end; each worker builds the compiler with its first one."""
    service, waiting = Service(tasks[0].target, tasks[0].target_args), collections.deque(tasks)
    while waiting or any(worker.busy for worker in workers):
        for worker in workers:
            if waiting and not worker.busy:
                task = waiting.popleft()
                worker.submit(service, task.method, *task.args, timeout=LIMIT_S)
        wait_any(workers, LIMIT_S)
        yield from [reply for worker in workers if worker.busy and (reply := worker.poll()) is not None]


def report(found: Sequence[Reply], ready_s: float, wall_s: float) -> None:
    seconds = sorted(reply.seconds for reply in found)
    codes = [reply.value.code for reply in found if reply.error is None and reply.value.code]
    refused = sum(reply.error is None and bool(reply.value.refused) for reply in found)
    failed = collections.Counter(type(reply.error).__name__ for reply in found if reply.error is not None)
    p90 = seconds[math.ceil(0.9 * len(seconds)) - 1]
    show = sys.stdout.write
    show(f"workers ready after {ready_s:.2f} s (median)\n")
    show(f"{len(found)} configs in {wall_s:.1f} s, start included: {len(found) / wall_s:.1f} a second\n")
    show(f"a config: mean {statistics.mean(seconds):.2f} s, p50 {statistics.median(seconds):.2f}, ")
    show(f"p90 {p90:.2f}, max {seconds[-1]:.2f}\n")
    show(f"{len(codes)} compiled ({len(set(codes))} different launches), {refused} refused, failed: {dict(failed)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", choices=KERNELS)
    for name, default in (("--configs", 60), ("--jobs", 2), ("--seed", 0)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    sys.path.insert(0, str(EXAMPLES))

    import triton

    triton.runtime.driver.set_active(OfflineDriver(H200))
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        triton.knobs.cache.dir = directory
        kernel, space = KERNELS[options.kernel]()
        tasks = [kernel.compile_task(c) for c in space.sample_new(random.Random(options.seed), options.configs, ())]
        begin = time.monotonic()
        workers = [Worker({"CUDA_VISIBLE_DEVICES": ""}, keep=4) for _ in range(options.jobs)]
        for worker in workers:
            stack.callback(worker.close)
        ready_s = warmed(workers, tasks[0])
        found = list(replies(workers, tasks))
        report(found, ready_s, time.monotonic() - begin)


if __name__ == "__main__":
    main()
