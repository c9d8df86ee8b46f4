"""Fixed work whose time tells how steadily this machine runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pytest_kerneltune.timers import calibration_work

_MIB = 1 << 20


def host_kernels() -> Mapping[str, Callable[[], Any]]:
    """A loop of the interpreter, which computes, and a copy that is larger than most caches."""
    source, target = bytes(16 * _MIB), bytearray(16 * _MIB)

    def copy() -> None:
        target[:] = source

    return {"interpreter loop": calibration_work, "copy of 16 MiB": copy}


def gpu_kernels() -> Mapping[str, Callable[[], Any]]:
    """One of PyTorch's kernels bound by memory, one by arithmetic and one too short for either, about 0.35 GiB in all.

    Raises RuntimeError where the GPU fails (torch.OutOfMemoryError is one).
    """
    import torch

    long, total = (torch.zeros(64 * _MIB // 2, device="cuda") for _ in range(2))
    short, sum_ = (torch.zeros(_MIB // 4, device="cuda") for _ in range(2))
    left, right, product = (torch.zeros(4096, 4096, device="cuda", dtype=torch.float16) for _ in range(3))
    for factor in (left, right):
        factor.normal_(generator=torch.Generator("cuda").manual_seed(0))  # zeros would draw less power
    return {
        "add over 128 MiB": lambda: torch.add(long, 1, out=total),
        "matmul of 4096^3": lambda: torch.matmul(left, right, out=product),
        "add over 1 MiB": lambda: torch.add(short, 1, out=sum_),
    }
