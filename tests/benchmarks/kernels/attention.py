"""Flash attention (forward, not causal) in Triton, against PyTorch's. Skipped without a CUDA GPU."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803

import math

import pytest
import torch
import triton
import triton.language as tl

from pytest_kerneltune import TritonKernel, TunedKernel, integer, power_of_two, tunable

BATCH, HEADS, SEQUENCE, SIZE = 4, 16, 2048, 64


@triton.jit
def attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    sequence,
    scale,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out = softmax(q k^T / sqrt(SIZE)) v for contiguous heads x sequence x SIZE, BLOCK_M queries a program.

    Both blocks divide the sequence; scale is log2(e) / sqrt(SIZE), since powers of two are what the hardware has.
    """
    head = tl.program_id(1) * sequence * SIZE
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    key = tl.arange(0, BLOCK_N)
    feature = tl.arange(0, SIZE)
    q = tl.load(q_ptr + head + row * SIZE + feature[None, :])
    k = k_ptr + head + key[None, :] * SIZE + feature[:, None]
    v = v_ptr + head + key[:, None] * SIZE + feature[None, :]

    highest = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    out = tl.zeros((BLOCK_M, SIZE), dtype=tl.float32)
    for _ in range(0, sequence, BLOCK_N):
        score = tl.dot(q, tl.load(k)) * scale
        higher = tl.maximum(highest, tl.max(score, axis=1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weight, axis=1)
        out = tl.dot(weight.to(v_ptr.dtype.element_ty), tl.load(v), out * shrink[:, None])
        highest = higher
        k += BLOCK_N * SIZE
        v += BLOCK_N * SIZE

    out /= total[:, None]
    tl.store(out_ptr + head + row * SIZE + feature[None, :], out.to(out_ptr.dtype.element_ty))


@tunable(
    space={
        "BLOCK_M": power_of_two(16, 256, default=32),
        "BLOCK_N": power_of_two(16, 128, default=32),
        "num_warps": power_of_two(1, 16, default=4),
        "num_stages": integer(1, 4, default=2),
    },
    # A thread has 255 registers, which must hold its scores and sums; with fewer than 8 of them it has little to do.
    where=lambda c: 8 * 32 * c["num_warps"] <= c["BLOCK_M"] * (c["BLOCK_N"] + SIZE) <= 256 * 32 * c["num_warps"],
    threshold="3%",
)
def attention() -> TritonKernel:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    q, k, v = torch.randn(3, BATCH, HEADS, SEQUENCE, SIZE, device="cuda", dtype=torch.float16)
    out = torch.empty_like(q)
    return TritonKernel(
        attention_kernel,
        args=(q, k, v, out, SEQUENCE, math.log2(math.e) / math.sqrt(SIZE)),
        kwargs={"SIZE": SIZE},
        grid=lambda config: (SEQUENCE // config["BLOCK_M"], BATCH * HEADS),
        output=out,
        reference=lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
    )


def test_attention(attention: TunedKernel) -> None:
    assert attention().shape == (BATCH, HEADS, SEQUENCE, SIZE)
