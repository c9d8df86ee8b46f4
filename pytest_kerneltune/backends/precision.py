"""What torch computes products of single precision matrices in: a setting of the process that references depend on."""

from __future__ import annotations


def matmul_precision() -> str | None:
    """The setting; None where that is not one word for all backends."""
    import torch

    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:
        return None


def use_matmul_precision(precision: str | None) -> None:
    """Have torch multiply so in this process; None leaves it as it is."""
    import torch

    if precision not in (None, matmul_precision()):
        torch.set_float32_matmul_precision(precision)
