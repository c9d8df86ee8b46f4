"""A matrix product in Triton, against PyTorch's (the vendor's library). Skipped without a CUDA GPU."""

from typing import Any

from pytest_kerneltune import TritonKernel, TunedKernel, choice, integer, power_of_two, tunable

N = 4096


@tunable(
    space={
        "BLOCK_M": power_of_two(32, 256, default=64),
        "BLOCK_N": power_of_two(32, 256, default=64),
        "BLOCK_K": power_of_two(32, 128),
        "GROUP_M": choice(1, 8, default=8),
        "num_warps": power_of_two(2, 16, default=4),
        "num_stages": integer(1, 5, default=3),
    },
    # A thread has 255 registers: with more sums than that the kernel is slow, and takes minutes to compile.
    where=lambda c: c["BLOCK_M"] * c["BLOCK_N"] <= 256 * 32 * c["num_warps"],
    threshold="3%",
)
def matmul(gpu: Any) -> TritonKernel:
    import torch
    import triton

    from kernels.matmul import matmul_kernel

    a, b = torch.randn(2, N, N, device=gpu, dtype=torch.bfloat16)
    c = torch.empty_like(a)
    return TritonKernel(
        matmul_kernel,
        args=(a, b, c, N, N, N, *a.stride(), *b.stride(), *c.stride()),
        grid=lambda config: (triton.cdiv(N, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"]),),
        output=c,
        reference=lambda: a @ b,
    )


def test_matmul(matmul: TunedKernel) -> None:
    assert matmul().shape == (N, N)
