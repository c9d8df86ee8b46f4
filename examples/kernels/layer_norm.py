"""A layer norm over rows in Triton: mean and variance are gathered block by block, then the row is read once more."""

import triton
import triton.language as tl


@triton.jit
def layer_norm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    rows,
    columns,
    eps,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EVICT: tl.constexpr,
):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias for contiguous x of rows x columns, ROWS rows a program.

    EVICT is the eviction policy of the first pass, which should leave the rows in the cache for the second.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    offsets = tl.arange(0, BLOCK_N)[None, :]

    # Blocks' means and squared deviations are merged as Chan, Golub and LeVeque (1979) do: no difference of large sums.
    mean = tl.zeros((ROWS, 1), dtype=tl.float32)
    deviation = tl.zeros((ROWS, 1), dtype=tl.float32)
    for start in range(0, columns, BLOCK_N):
        column = start + offsets
        inside = (row < rows) & (column < columns)
        x = tl.load(x_ptr + row * columns + column, mask=inside, other=0.0, eviction_policy=EVICT).to(tl.float32)
        count = min(columns - start, BLOCK_N)
        block_mean = tl.sum(x, axis=1, keep_dims=True) / count
        centred = tl.where(column < columns, x - block_mean, 0.0)
        shift = block_mean - mean
        mean += shift * count / (start + count)
        deviation += tl.sum(centred * centred, axis=1, keep_dims=True) + shift * shift * start * count / (start + count)
    scale = tl.rsqrt(deviation / columns + eps)

    for start in range(0, columns, BLOCK_N):
        column = start + offsets
        inside = (row < rows) & (column < columns)
        x = tl.load(x_ptr + row * columns + column, mask=inside, other=0.0, eviction_policy="evict_first")
        weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
        y = (x.to(tl.float32) - mean) * scale * weight + bias
        tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=inside)
