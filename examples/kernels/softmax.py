"""A softmax over rows in Triton: whole rows fit the registers; a program may work through many blocks of rows."""

import triton
import triton.language as tl


@triton.jit
def softmax_kernel(
    x_ptr,
    y_ptr,
    rows,
    columns,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    PROGRAMS_PER_SM: tl.constexpr,  # read by the grid alone
):
    """y = softmax(x) for contiguous x of rows x columns, ROWS rows at a time; BLOCK >= columns is a power of two."""
    column = tl.arange(0, BLOCK)[None, :]
    step = tl.num_programs(0) * ROWS
    for start in tl.range(tl.program_id(0) * ROWS, rows, step, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < columns)
        x = tl.load(x_ptr + row * columns + column, mask=inside, other=float("-inf")).to(tl.float32)
        # Rows past the end come out as NaN, and are not stored.
        power = tl.exp(x - tl.max(x, axis=1, keep_dims=True))
        y = power / tl.sum(power, axis=1, keep_dims=True)
        tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=inside)
