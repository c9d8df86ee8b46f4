"""Kernels whose amount of work is a parameter: what the gate is tried on. Needs a CUDA GPU."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: ARG001, N803

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl

from pytest_kerneltune.backends.triton import TritonKernel
from pytest_kerneltune.trial import Config


@triton.jit
def softmax_kernel(x_ptr, y_ptr, rows, columns, BLOCK: tl.constexpr, PROGRAMS):
    """y = softmax(x), a row a program; PROGRAMS, which the grid reads, may be more than rows: those do the first rows
    once more."""
    row = tl.program_id(0) % rows
    column = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + column, mask=column < columns, other=float("-inf")).to(tl.float32)
    power = tl.exp(x - tl.max(x, axis=0))
    y = power / tl.sum(power, axis=0)
    tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=column < columns)


@triton.jit
def layer_norm_kernel(x_ptr, y_ptr, rows, columns, BLOCK: tl.constexpr, PROGRAMS):
    """y = (x - mean) / sqrt(variance + 1e-5), a row a program, as softmax_kernel has them."""
    row = tl.program_id(0) % rows
    column = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + column, mask=column < columns, other=0.0).to(tl.float32)
    centred = tl.where(column < columns, x - tl.sum(x, axis=0) / columns, 0.0)
    y = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / columns + 1e-5)
    tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=column < columns)


@triton.jit
def add_kernel(x_ptr, y_ptr, rows, columns, BLOCK: tl.constexpr, PROGRAMS):
    """y = x + 1, BLOCK elements a program, as softmax_kernel has them."""
    element = (tl.program_id(0) % rows) * columns + tl.arange(0, BLOCK)
    tl.store(y_ptr + element, tl.load(x_ptr + element) + 1.0)


@triton.jit
def matmul_kernel(a_ptr, b_ptr, c_ptr, size, depth, BLOCK_K: tl.constexpr, STEPS):
    """c = a b for square a and b, a tile of 128 x 128 a program; STEPS beyond the last add zeros."""
    tiles = size // 128
    row = (tl.program_id(0) // tiles) * 128 + tl.arange(0, 128)
    column = (tl.program_id(0) % tiles) * 128 + tl.arange(0, 128)
    inner = tl.arange(0, BLOCK_K)
    total = tl.zeros((128, 128), dtype=tl.float32)
    for step in range(STEPS):
        k = (step * BLOCK_K) % depth + inner
        a = tl.load(a_ptr + row[:, None] * size + k[None, :], mask=(step * BLOCK_K + inner)[None, :] < depth, other=0.0)
        b = tl.load(b_ptr + k[:, None] * size + column[None, :])
        total = tl.dot(a, b, total)
    tl.store(c_ptr + row[:, None] * size + column[None, :], total.to(c_ptr.dtype.element_ty))


@dataclass(frozen=True)
class Subject:
    """A kernel, and its config with a fraction of work more than it needs (0: none)."""

    kernel: TritonKernel
    config: Callable[[float], Config]


def _rows(fn, rows: int, columns: int, dtype, warps: int, reference) -> Subject:
    x = torch.randn(rows, columns, device="cuda", dtype=dtype)
    y = torch.empty_like(x)
    kernel = TritonKernel(
        fn,
        (x, y, rows, columns),
        lambda config: (config["PROGRAMS"],),
        y,
        partial(reference, x),
        kwargs={"BLOCK": triton.next_power_of_2(columns)},
    )
    return Subject(kernel, lambda more: {"PROGRAMS": round(rows * (1 + more)), "num_warps": warps})


def _matmul(size: int) -> Subject:
    a, b = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    c = torch.empty_like(a)
    block, tiles = 32, size // 128
    kernel = TritonKernel(matmul_kernel, (a, b, c, size, size), (tiles * tiles,), c, lambda: a @ b)

    def config(more: float) -> Config:
        return {"BLOCK_K": block, "STEPS": round(size / block * (1 + more)), "num_warps": 8, "num_stages": 3}

    return Subject(kernel, config)


def _softmax(x):
    return torch.softmax(x, -1)


def _layer_norm(x):
    return torch.nn.functional.layer_norm(x, x.shape[-1:])


def _add(x):
    return x + 1


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "softmax": partial(_rows, softmax_kernel, 16384, 1500, torch.float16, 4, _softmax),
    "layer_norm": partial(_rows, layer_norm_kernel, 4096, 8192, torch.bfloat16, 16, _layer_norm),
    "matmul": partial(_matmul, 4096),
    "add": partial(_rows, add_kernel, 1 << 14, 2048, torch.float32, 8, _add),
    "short_softmax": partial(_rows, softmax_kernel, 2048, 1500, torch.float16, 4, _softmax),
    "medium_softmax": partial(_rows, softmax_kernel, 5120, 1500, torch.float16, 4, _softmax),
}
"""By name; the last two take 5 to 20 us."""
