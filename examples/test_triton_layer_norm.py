"""A layer norm in Triton, against PyTorch's. Skipped without a CUDA GPU."""

from typing import Any

from pytest_kerneltune import TritonKernel, TunedKernel, choice, integer, power_of_two, tunable

ROWS, COLUMNS = 4096, 8192


@tunable(
    space={
        "ROWS": power_of_two(1, 8),
        "BLOCK_N": power_of_two(256, 8192, default=1024),
        "EVICT": choice("", "evict_last"),
        "num_warps": power_of_two(1, 32, default=4),
        "num_stages": integer(1, 4),
    },
    # A thread has 255 registers, and a block must fit them.
    where=lambda c: c["ROWS"] * c["BLOCK_N"] <= 256 * 32 * c["num_warps"],
    threshold="3%",
)
def layer_norm(gpu: Any) -> TritonKernel:
    import torch
    import triton

    from kernels.layer_norm import layer_norm_kernel

    x = torch.randn(ROWS, COLUMNS, device=gpu, dtype=torch.bfloat16)
    weight, bias = torch.randn(2, COLUMNS, device=gpu, dtype=torch.bfloat16)
    y = torch.empty_like(x)
    return TritonKernel(
        layer_norm_kernel,
        args=(x, weight, bias, y, ROWS, COLUMNS, 1e-5),
        grid=lambda config: (triton.cdiv(ROWS, config["ROWS"]),),
        output=y,
        reference=lambda: torch.nn.functional.layer_norm(x, (COLUMNS,), weight, bias, 1e-5),
    )


def test_layer_norm(layer_norm: TunedKernel) -> None:
    assert layer_norm().shape == (ROWS, COLUMNS)
