"""A 5-point stencil on a grid of two dimensions in Triton, against PyTorch's. Skipped without a CUDA GPU."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803

import pytest
import torch
import triton
import triton.language as tl

from pytest_kerneltune import TritonKernel, TunedKernel, choice, integer, power_of_two, tunable

ROWS, COLUMNS = 8192, 8192


@triton.jit
def stencil_kernel(
    x_ptr,
    y_ptr,
    rows,
    columns,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """y = x / 2 + (left + right + above + below) / 8 for contiguous x of rows x columns, with zeros around it.

    A program does TILES tiles of BLOCK_Y x BLOCK_X, one below the other.
    """
    column = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)[None, :]
    for tile in tl.range(tl.program_id(1) * TILES, (tl.program_id(1) + 1) * TILES, num_stages=STAGES):
        row = tile * BLOCK_Y + tl.arange(0, BLOCK_Y)[:, None]
        inside = (row < rows) & (column < columns)
        x = x_ptr + row * columns + column
        centre = tl.load(x, mask=inside, other=0.0)
        left = tl.load(x - 1, mask=inside & (column > 0), other=0.0)
        right = tl.load(x + 1, mask=inside & (column < columns - 1), other=0.0)
        above = tl.load(x - columns, mask=inside & (row > 0), other=0.0)
        below = tl.load(x + columns, mask=inside & (row < rows - 1), other=0.0)
        y = centre * 0.5 + (left + right + above + below) * 0.125
        tl.store(y_ptr + row * columns + column, y, mask=inside)


@tunable(
    space={
        "BLOCK_Y": power_of_two(1, 32, default=4),
        "BLOCK_X": power_of_two(64, 1024),
        "TILES": choice(1, 8, default=8),
        "STAGES": integer(1, 3, default=2),
        "num_warps": power_of_two(1, 8, default=2),
    },
    # 4 to 32 points a thread, so that its registers hold them; a single tile has nothing to overlap with.
    where=lambda c: (
        4 * 32 * c["num_warps"] <= c["BLOCK_Y"] * c["BLOCK_X"] <= 32 * 32 * c["num_warps"]
        and (c["TILES"] > 1 or c["STAGES"] == 1)
    ),
    threshold="3%",
)
def stencil() -> TritonKernel:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    x = torch.randn(ROWS, COLUMNS, device="cuda")
    y = torch.empty_like(x)

    def reference() -> torch.Tensor:
        p = torch.nn.functional.pad(x, (1, 1, 1, 1))
        return x * 0.5 + (p[1:-1, :-2] + p[1:-1, 2:] + p[:-2, 1:-1] + p[2:, 1:-1]) * 0.125

    return TritonKernel(
        stencil_kernel,
        args=(x, y, ROWS, COLUMNS),
        grid=lambda config: (
            triton.cdiv(COLUMNS, config["BLOCK_X"]),
            triton.cdiv(ROWS, config["BLOCK_Y"] * config["TILES"]),
        ),
        output=y,
        reference=reference,
    )


def test_stencil(stencil: TunedKernel) -> None:
    assert stencil().shape == (ROWS, COLUMNS)
