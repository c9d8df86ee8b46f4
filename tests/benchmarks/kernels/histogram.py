"""A histogram of many small numbers in Triton, against PyTorch's. Skipped without a CUDA GPU."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: ARG001, N803

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from pytest_kerneltune import TritonKernel, TunedKernel, choice, integer, power_of_two, tunable

N, BINS = 1 << 26, 256


@triton.jit
def histogram_kernel(
    x_ptr,
    counts_ptr,
    n,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    PROGRAMS_PER_SM: tl.constexpr,  # read by the grid alone
    STAGES: tl.constexpr,
):
    """counts[i] += how many of the n numbers x, all in 0 to BINS - 1, are i; counts starts as zeros.

    A program counts many blocks for itself, and adds its counts to the others' at the end.
    """
    counts = tl.zeros((BINS,), dtype=tl.int32)
    for start in tl.range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK, num_stages=STAGES):
        offset = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offset, mask=offset < n, other=0)
        counts += tl.histogram(x, BINS, mask=offset < n)
    tl.atomic_add(counts_ptr + tl.arange(0, BINS), counts, sem="relaxed")


@tunable(
    space={
        "BLOCK": power_of_two(512, 16384, default=1024),
        "PROGRAMS_PER_SM": choice(1, 2, 4, 8, 16, 32),
        "STAGES": integer(1, 3),
        "num_warps": power_of_two(1, 16, default=4),
    },
    # Each thread has four numbers at least, and no more than its registers hold.
    where=lambda c: 4 * 32 * c["num_warps"] <= c["BLOCK"] <= 64 * 32 * c["num_warps"],
    threshold="3%",
)
def histogram() -> TritonKernel:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    x = torch.randint(0, BINS, (N,), device="cuda", dtype=torch.int32)
    counts = torch.zeros(BINS, device="cuda", dtype=torch.int32)
    device = torch.cuda.get_device_properties("cuda")

    def grid(config: Any) -> tuple[int]:
        return (min(triton.cdiv(N, config["BLOCK"]), config["PROGRAMS_PER_SM"] * device.multi_processor_count),)

    return TritonKernel(
        histogram_kernel,
        args=(x, counts, N),
        kwargs={"BINS": BINS},
        grid=grid,
        output=counts,
        reference=lambda: torch.bincount(x, minlength=BINS).int(),
    )


def test_histogram(histogram: TunedKernel) -> None:
    assert histogram().sum() == N
