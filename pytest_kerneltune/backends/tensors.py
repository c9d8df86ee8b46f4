"""torch tensors as a kernel's arguments: found, compared on their device, brought back to first content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

TOLERANCE = {8: 0.125, 16: 1e-2, 32: 1e-2, 64: 1e-6}
"""Bits of a floating type to its default tolerance. Single precision gets that of TF32, which ``tl.dot`` defaults to,
with room for the sums of a long dot product."""

_SPOILABLE_BITS = 16  # torch cannot fill every 8-bit float with NaN
_INVERTIBLE = ("bool", "uint8", "int8", "int16", "int32", "int64")


def tensors_in(arguments: Iterable[Any]) -> Iterator[Any]:
    """The tensors among ``arguments``, inside tuples and behind descriptors (objects with a ``base``) too."""
    import torch

    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, tuple | list):
            yield from tensors_in(argument)
        elif hasattr(argument, "base"):
            yield from tensors_in([argument.base])


def storage_bytes(tensors: Iterable[Any]) -> dict[int, Any]:
    """Every distinct storage behind ``tensors``: its address, and its bytes as a flat uint8 tensor."""
    import torch

    found: dict[int, Any] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in found:
            found[storage.data_ptr()] = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
    return found


class Snapshot:
    """The present content of everything behind some tensors; views of one storage stay views of one storage.

    ``live`` and ``first`` map a storage's address to its bytes: as they are, and as they were.
    """

    def __init__(self, tensors: Iterable[Any]) -> None:
        self.live = storage_bytes(tensors)
        self.first = {address: content.clone() for address, content in self.live.items()}

    def restore(self) -> None:
        """Bring the content back."""
        for address, content in self.live.items():
            content.copy_(self.first[address])


def spoil(output: Any, expected: Any) -> None:
    """Fill ``output`` with values that are wrong wherever they stay (types without such a value are left alone)."""
    dtype = output.dtype
    if dtype.is_floating_point or dtype.is_complex:
        if _bits(dtype) >= _SPOILABLE_BITS:
            output.fill_(float("nan"))
    elif output.shape == expected.shape and str(dtype).removeprefix("torch.") in _INVERTIBLE:
        output.copy_(~expected.to(dtype))


def mismatch(actual: Any, expected: Any, rtol: float | None, atol: float | None) -> str | None:
    """How the tensor ``actual`` differs from ``expected``; None if it does not.

    Floats may differ by ``atol + rtol * |expected|``; ``rtol`` defaults to the tolerance of the coarser type, ``atol``
    to that times the root mean square of ``expected`` (zeros do not pass for small numbers, nor does a sum that
    cancels fail). Everything else must be equal. NaN passes where NaN is expected, only.
    """
    if actual.shape != expected.shape:
        return f"has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    inexact = [t.dtype for t in (actual, expected) if t.dtype.is_floating_point or t.dtype.is_complex]
    if not inexact:
        wrong = actual != expected
        return _report(wrong, actual, expected, wrong, "") if bool(wrong.any()) else None
    rtol = max(TOLERANCE[_bits(dtype)] for dtype in inexact) if rtol is None else rtol
    got, want = _widened(actual), _widened(expected)
    atol = rtol * _root_mean_square(want) if atol is None else atol
    error = (got - want).abs()
    near = error.isfinite() & (error <= atol + rtol * want.abs())  # false for NaN and for infinities, equal ones too
    wrong = ~near & (got != want) & ~(got.isnan() & want.isnan())
    if not bool(wrong.any()):
        return None
    return _report(wrong, got, want, error, f" by more than rtol={rtol:g}, atol={atol:.3g}")


def _report(wrong: Any, got: Any, want: Any, error: Any, tolerance: str) -> str:
    import torch

    weight = torch.where(wrong, error.double().nan_to_num(nan=torch.inf), -1.0)
    flat = int(weight.argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), got.shape))
    actual, expected = got.flatten()[flat].item(), want.flatten()[flat].item()
    text = f"{int(wrong.sum())} of {wrong.numel()} elements differ{tolerance}; worst at {where}: "
    if not tolerance:
        return f"{text}{actual}, expected {expected}"
    relative = (error / want.abs())[wrong & error.isfinite() & (want != 0)]
    largest = f", max relative error {relative.max().item():.3g}" if relative.numel() else ""
    return f"{text}{actual:.6g}, expected {expected:.6g}; max absolute error {weight.max().item():.3g}{largest}"


def _bits(dtype: Any) -> int:
    import torch

    return int(torch.finfo(dtype).bits)


def _widened(tensor: Any) -> Any:
    import torch

    if tensor.dtype in (torch.float64, torch.complex64, torch.complex128):
        return tensor
    return tensor.to(torch.float32 if tensor.dtype.is_floating_point else torch.float64)


def _root_mean_square(values: Any) -> float:
    """Of the finite ones; 0 where there are none."""
    import torch

    finite = values.isfinite()
    norm = torch.linalg.vector_norm(torch.where(finite, values.abs(), 0), dtype=torch.float64)
    return float(norm / finite.sum().clamp(min=1).sqrt())
