"""A matrix transpose in CUDA C++, against PyTorch's: the tile, the block and the way through the caches are tuned.

Skipped without a CUDA GPU or cupy.
"""

from pathlib import Path
from typing import Any

import pytest
from pytest_kerneltune import CudaKernel, TunedKernel, boolean, choice, power_of_two, tunable

SOURCE = Path(__file__).parent / "kernels" / "transpose.cu"
ROWS, COLUMNS = 8192, 4096


@tunable(
    space={
        # The kernel sees -DTILE=32. A block of 64 x 32 threads is more than a GPU takes: it is refused, not launched.
        "TILE": power_of_two(8, 64),
        "THREAD_ROWS": power_of_two(1, 32),
        "PAD": choice(0, 1, 2),
        "STREAM": boolean(),
    },
    where=lambda c: c["THREAD_ROWS"] <= c["TILE"],
    threshold="3%",
)
def transpose(gpu: Any) -> CudaKernel:
    pytest.importorskip("cupy", reason="needs cupy: pip install 'pytest-kerneltune[cuda]'")
    import torch

    x = torch.randn(ROWS, COLUMNS, device=gpu)
    y = torch.empty(COLUMNS, ROWS, device=gpu)
    return CudaKernel(
        SOURCE,
        "transpose",
        args=(x, y, ROWS, COLUMNS),
        grid=lambda c: (-(-COLUMNS // c["TILE"]), -(-ROWS // c["TILE"])),
        block=lambda c: (c["TILE"], c["THREAD_ROWS"]),
        output=y,
        reference=lambda: x.T.contiguous(),
    )


def test_transpose(transpose: TunedKernel) -> None:
    assert transpose().shape == (COLUMNS, ROWS)
