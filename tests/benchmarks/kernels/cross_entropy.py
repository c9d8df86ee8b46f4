"""The cross-entropy of rows of logits in Triton, against PyTorch's. Skipped without a CUDA GPU."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803

import pytest
import torch
import triton
import triton.language as tl

from pytest_kerneltune import TritonKernel, TunedKernel, integer, power_of_two, tunable

ROWS, COLUMNS = 4096, 32000


@triton.jit
def cross_entropy_kernel(
    x_ptr,
    target_ptr,
    loss_ptr,
    rows,
    columns,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """loss = log(sum(exp(x))) - x[target] for each row of a contiguous x of rows x columns, ROWS rows a program.

    The sum is gathered in one pass, BLOCK columns at a time, in proportion to the exponential of the highest so far.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    first = x_ptr + row * columns
    highest = tl.full((ROWS, 1), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS, 1), dtype=tl.float32)
    for start in tl.range(0, columns, BLOCK, num_stages=STAGES):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (column < columns)
        x = tl.load(first + column, mask=inside, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x, axis=1, keep_dims=True))
        # Rows past the end come out as NaN, and are not stored.
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), axis=1, keep_dims=True)
        highest = higher
    target = tl.load(target_ptr + row, mask=row < rows, other=0)
    at_target = tl.load(first + target, mask=row < rows, other=0.0).to(tl.float32)
    tl.store(loss_ptr + row, highest + tl.log(total) - at_target, mask=row < rows)


@tunable(
    space={
        "ROWS": power_of_two(1, 8),
        "BLOCK": power_of_two(256, 16384, default=512),
        "STAGES": integer(1, 4),
        "num_warps": power_of_two(1, 16, default=4),
    },
    # Each thread has four logits at least, and no more than its registers hold.
    where=lambda c: 4 * 32 * c["num_warps"] <= c["ROWS"] * c["BLOCK"] <= 64 * 32 * c["num_warps"],
    threshold="3%",
)
def cross_entropy() -> TritonKernel:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    x = torch.randn(ROWS, COLUMNS, device="cuda", dtype=torch.bfloat16)
    target = torch.randint(0, COLUMNS, (ROWS,), device="cuda")
    loss = torch.empty(ROWS, device="cuda")
    return TritonKernel(
        cross_entropy_kernel,
        args=(x, target, loss, ROWS, COLUMNS),
        grid=lambda config: (triton.cdiv(ROWS, config["ROWS"]),),
        output=loss,
        reference=lambda: torch.nn.functional.cross_entropy(x, target, reduction="none"),
    )


def test_cross_entropy(cross_entropy: TunedKernel) -> None:
    assert cross_entropy().isfinite().all()
