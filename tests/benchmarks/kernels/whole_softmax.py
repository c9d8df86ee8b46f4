"""The softmax of the examples over its whole recorded space of 720 configs, slow to compile and spilling ones too.

Run with ``PYTHONPATH=examples pytest tests/benchmarks/kernels/whole_softmax.py --autotune=FiniteSearch``: how many
configs a second are compiled, checked and timed. Skipped without a CUDA GPU.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import triton
from kernels.softmax import softmax_kernel

from pytest_kerneltune import TritonKernel, TunedKernel, choice, integer, power_of_two, tunable

ROWS, COLUMNS, BLOCK = 16384, 1500, 2048


@tunable(
    space={
        "ROWS": power_of_two(1, 16),
        "STAGES": integer(1, 4),
        "PROGRAMS_PER_SM": choice(0, 1, 2, 4, 8, 16),
        "num_warps": power_of_two(1, 32, default=4),
    }
)
def whole_softmax() -> TritonKernel:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    x = torch.randn(ROWS, COLUMNS, device="cuda", dtype=torch.float16)
    y = torch.empty_like(x)
    processors = torch.cuda.get_device_properties(0).multi_processor_count

    def grid(config: Mapping[str, Any]) -> tuple[int]:
        blocks = triton.cdiv(ROWS, config["ROWS"])
        programs = config["PROGRAMS_PER_SM"] * processors
        return (min(blocks, programs) if programs else blocks,)

    return TritonKernel(
        softmax_kernel,
        args=(x, y, ROWS, COLUMNS),
        kwargs={"BLOCK": BLOCK},
        grid=grid,
        output=y,
        reference=lambda: torch.softmax(x, -1),
    )


def test_whole_softmax(whole_softmax: TunedKernel) -> None:
    assert whole_softmax().shape == (ROWS, COLUMNS)
