"""A softmax in Triton, against PyTorch's: how a launch is cut into programs is tuned with the kernel.

Skipped without a CUDA GPU.
"""

from typing import Any

from pytest_kerneltune import TritonKernel, TunedKernel, choice, integer, power_of_two, tunable

ROWS, COLUMNS, BLOCK = 16384, 1500, 2048


@tunable(
    space={
        "ROWS": power_of_two(1, 16),
        "STAGES": integer(1, 4),
        "PROGRAMS_PER_SM": choice(0, 1, 2, 4, 8, 16),  # 0: one program for each block of rows
        "num_warps": power_of_two(1, 32, default=4),
    },
    # A thread has 255 registers, and the rows must fit them.
    where=lambda c: c["ROWS"] * BLOCK <= 256 * 32 * c["num_warps"],
    threshold="3%",
)
def softmax(gpu: Any) -> TritonKernel:
    import torch
    import triton

    from kernels.softmax import softmax_kernel

    x = torch.randn(ROWS, COLUMNS, device=gpu, dtype=torch.float16)
    y = torch.empty_like(x)
    device = torch.cuda.get_device_properties(gpu)

    def grid(config: Any) -> tuple[int]:
        blocks = triton.cdiv(ROWS, config["ROWS"])
        programs = config["PROGRAMS_PER_SM"] * device.multi_processor_count
        return (min(blocks, programs) if programs else blocks,)

    return TritonKernel(
        softmax_kernel,
        args=(x, y, ROWS, COLUMNS),
        kwargs={"BLOCK": BLOCK},
        grid=grid,
        output=y,
        reference=lambda: torch.softmax(x, -1),
    )


def test_softmax(softmax: TunedKernel) -> None:
    assert softmax().shape == (ROWS, COLUMNS)
