"""A product of few rows with int8 weights in Triton, against PyTorch's. Skipped without a CUDA GPU."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803

import pytest
import torch
import triton
import triton.language as tl

from pytest_kerneltune import TritonKernel, TunedKernel, integer, power_of_two, tunable

M, N, K = 16, 8192, 8192


@triton.jit
def quantised_matmul_kernel(
    x_ptr,
    w_ptr,
    scale_ptr,
    y_ptr,
    n,
    k,
    M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    """y += (x w) * scale for contiguous x of M x k, int8 w of k x n and a scale for each column; y starts as zeros.

    SPLIT_K programs share the sums of one block of columns: each takes every SPLIT_K-th block of BLOCK_K rows of w.
    BLOCK_N divides n, and BLOCK_K * SPLIT_K divides k.
    """
    part = tl.program_id(1)
    row = tl.arange(0, M)[:, None]
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    inner = part * BLOCK_K + tl.arange(0, BLOCK_K)
    x = x_ptr + row * k + inner[None, :]
    w = w_ptr + inner[:, None] * n + column
    total = tl.zeros((M, BLOCK_N), dtype=tl.float32)
    for _ in range(part * BLOCK_K, k, BLOCK_K * SPLIT_K):
        total = tl.dot(tl.load(x), tl.load(w).to(x_ptr.dtype.element_ty), total)
        x += BLOCK_K * SPLIT_K
        w += BLOCK_K * SPLIT_K * n
    tl.atomic_add(y_ptr + row * n + column, total * tl.load(scale_ptr + column), sem="relaxed")


@tunable(
    space={
        "BLOCK_N": power_of_two(32, 256, default=64),
        "BLOCK_K": power_of_two(64, 256),
        "SPLIT_K": power_of_two(1, 16),
        "num_warps": power_of_two(2, 8, default=4),
        "num_stages": integer(2, 5),
    },
    # 32 to 128 weights a thread: with fewer a thread is idle most of the time, with more its registers overflow.
    where=lambda c: 32 * 32 * c["num_warps"] <= c["BLOCK_N"] * c["BLOCK_K"] <= 128 * 32 * c["num_warps"],
    threshold="3%",
)
def quantised_matmul() -> TritonKernel:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    x = torch.randn(M, K, device="cuda", dtype=torch.float16)
    w = torch.randint(-127, 128, (K, N), device="cuda", dtype=torch.int8)
    scale = torch.rand(N, device="cuda") / 127
    y = torch.zeros(M, N, device="cuda")
    return TritonKernel(
        quantised_matmul_kernel,
        args=(x, w, scale, y, N, K),
        kwargs={"M": M},
        grid=lambda config: (N // config["BLOCK_N"], config["SPLIT_K"]),
        output=y,
        reference=lambda: (x @ w.half()).float() * scale,
    )


def test_quantised_matmul(quantised_matmul: TunedKernel) -> None:
    assert quantised_matmul().shape == (M, N)
