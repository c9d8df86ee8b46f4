"""torch tensors as a kernel's arguments: found, compared on their device, brought back to first content, packed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """The present content of everything behind some tensors; views of one storage stay views of one storage."""

    def __init__(self, tensors: Iterable[Any]) -> None:
        self._live = storage_bytes(tensors)
        self._first = {address: content.clone() for address, content in self._live.items()}

    def restore(self) -> None:
        """Bring the content back."""
        for address, content in self._live.items():
            content.copy_(self._first[address])

    def changed(self, besides: Iterable[Any]) -> bool:
        """Whether anything was written to, outside the storages of the tensors ``besides``."""
        import torch

        ignored = storage_bytes(besides)
        inputs = [address for address in self._live if address not in ignored]
        return any(not torch.equal(self._live[address], self._first[address]) for address in inputs)


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
    finite = values[values.isfinite()].abs().double()
    return float(finite.square().mean().sqrt()) if finite.numel() else 0.0


class _Storage:
    """The bytes behind some tensors of one pickle, sent once."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_storage, (self._content.cpu().numpy(), str(self._content.device))


def tensor_reducer() -> Callable[[Any], tuple[Any, ...]]:
    """A reducer of torch.Tensor for one pickle: tensors that share memory share it where they are unpacked, too.

    (torch's own reducer gives every view a storage of its own.)
    """
    storages: dict[int, _Storage] = {}

    def reduce(tensor: Any) -> tuple[Any, ...]:
        import torch

        odd = tensor.requires_grad or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta
        if odd or type(tensor) is not torch.Tensor:
            plain: tuple[Any, ...] = tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            return plain
        ((address, content),) = storage_bytes([tensor]).items()
        storage = storages.setdefault(address, _Storage(content))
        view: Sequence[Any] = (tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        return _load_tensor, (storage, *view)

    return reduce


def _load_storage(content: Any, device: str) -> Any:
    import torch

    # A copy: numpy's memory is aligned to 16 bytes at best, torch's to 64 (CPU) or 512 (CUDA) bytes.
    return torch.tensor(content, device=device)


def _load_tensor(content: Any, dtype: Any, offset: int, shape: Any, stride: Any) -> Any:
    import torch

    return torch.empty(0, dtype=dtype, device=content.device).set_(content.untyped_storage(), offset, shape, stride)
