"""torch tensors as a kernel's arguments: found, compared on their device, brought back to first content."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

TOLERANCE = {8: 0.125, 16: 1e-2, 32: 1e-2, 64: 1e-6}
"""Bits of a floating type to its default tolerance. Single precision gets that of TF32, which ``tl.dot`` defaults to,
with room for the sums of a long dot product."""

_NAN_BYTES = {"e4m3fn": 0x7F, "e5m2": 0x7F, "e4m3fnuz": 0x80, "e5m2fnuz": 0x80, "e8m0fnu": 0xFF}
"""8-bit floating types to a NaN of theirs, with which torch cannot fill each of them."""
_SIGNED = {"uint16": "int16", "uint32": "int32", "uint64": "int64"}
"""Types with which torch can do little to those of the same bytes with which it can."""
_BYTE = 8  # bits
_NOTHING: Mapping[int, Any] = MappingProxyType({})
_AT_ONCE = 1 << 25  # elements; comparing them takes about 30 bytes for each


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

    ``live`` and ``first`` map a storage's address to its bytes: as they are, and as they were. ``first`` may be given
    for some storages: not as they are, then.
    """

    def __init__(self, tensors: Iterable[Any], first: Mapping[int, Any] = _NOTHING) -> None:
        self.live = storage_bytes(tensors)
        self.first = {a: first[a] if a in first else content.clone() for a, content in self.live.items()}

    def restore(self, addresses: Collection[int] | None = None) -> None:
        """Bring the content back, of all storages or of those at ``addresses``."""
        for address in self.live if addresses is None else addresses:
            self.live[address].copy_(self.first[address])

    def differing(self, other: Snapshot) -> set[int]:
        """Addresses of the storages in both for which the first content is not one and the same tensor."""
        return {a for a, first in self.first.items() if a in other.first and first is not other.first[a]}

    def changed(self, but: Collection[int] = ()) -> bool:
        """Whether anything is not as it was, except in the storages at the addresses ``but``."""
        return any(bool((words(c) != words(self.first[a])).any()) for a, c in self.live.items() if a not in but)


def words(content: Any) -> Any:
    """Flat bytes as the widest integers that they make."""
    import torch

    return content if len(content) % 8 else content.view(torch.int64)


def spoil(output: Any, expected: Any) -> None:
    """Fill ``output`` with values that are wrong wherever they stay: with NaN, or the opposite of what is expected."""
    output, alike = output.detach(), output.shape == expected.shape
    if alike:  # an element of an expanded tensor is written once
        once = tuple(slice(1) if step == 0 else slice(None) for step in output.stride())
        output, expected = output[once], expected[once]
    if not _is_inexact(output):
        if alike:
            _signed(output).copy_(~_signed(expected.to(output.dtype)))
        return
    *_, name = str(output.dtype).rpartition("float8_")
    if name in _NAN_BYTES:
        output = _bytes(output).fill_(_NAN_BYTES[name])
    else:
        output.fill_(float("nan"))
    if alike and _is_inexact(expected):
        output.masked_fill_((expected if _bits(expected.dtype) > _BYTE else _widened(expected)).isnan(), 0)


def mismatch(actual: Any, expected: Any, rtol: float | None, atol: float | None) -> str | None:
    """How the tensor ``actual`` differs from ``expected``; None if it does not.

    Floats may differ by ``atol + rtol * |expected|``; ``rtol`` defaults to the tolerance of the coarser type, ``atol``
    to that times the root mean square of ``expected`` (zeros do not pass for small numbers, nor does a sum that
    cancels fail). Everything else must be equal. NaN passes where NaN is expected, only.
    """
    if actual.shape != expected.shape:
        return f"has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    inexact = [tensor.dtype for tensor in (actual, expected) if _is_inexact(tensor)]
    tolerance: _Tolerance | None = None
    if inexact:
        rtol = max(TOLERANCE[_bits(dtype)] for dtype in inexact) if rtol is None else rtol
        tolerance = _Tolerance(rtol, rtol * _root_mean_square(expected) if atol is None else atol)
    pairs = zip(_parts(actual), _parts(expected), strict=True)
    found = [_difference(i * _AT_ONCE, *pair, tolerance) for i, pair in enumerate(pairs)]
    differences = [difference for difference in found if difference is not None]
    return _report(differences, actual, tolerance) if differences else None


class _Tolerance(NamedTuple):
    relative: float
    absolute: float


class _Difference(NamedTuple):
    """How many elements of two flat tensors differ; the worst with its place; the largest relative error, if any."""

    elements: int
    error: float
    place: int
    actual: Any
    expected: Any
    relative: float | None


def _parts(tensor: Any) -> Any:
    """The elements of ``tensor`` in flat parts that are small enough for many temporaries of their size."""
    return tensor.reshape(-1).split(_AT_ONCE)


def _difference(start: int, actual: Any, expected: Any, tolerance: _Tolerance | None) -> _Difference | None:
    """How flat tensors differ that begin at element ``start`` of the whole; without a tolerance they must be equal."""
    import torch

    if tolerance is None:
        same = actual.dtype == expected.dtype
        wrong = _signed(actual) != _signed(expected) if same else _exact(actual) != _exact(expected)
        error = wrong
    else:
        actual, expected = _widened(actual), _widened(expected)
        error, sizes = (actual - expected).abs(), expected.abs()
        near = error.isfinite() & (
            error <= tolerance.absolute + tolerance.relative * sizes
        )  # false for NaN, infinities
        wrong = ~near & (actual != expected) & ~(actual.isnan() & expected.isnan())
    if not bool(wrong.any()):
        return None
    weight = torch.where(wrong, error.double().nan_to_num(nan=torch.inf), -1.0)
    place, relative = int(weight.argmax()), None
    if tolerance is not None:
        ratios = (error / sizes)[wrong & error.isfinite() & (expected != 0)]
        relative = ratios.max().item() if ratios.numel() else None
    values = weight[place].item(), start + place, actual[place].item(), expected[place].item()
    return _Difference(int(wrong.sum()), *values, relative)


def _report(differences: Sequence[_Difference], whole: Any, tolerance: _Tolerance | None) -> str:
    import torch

    worst = max(differences, key=lambda difference: difference.error)
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst.place), whole.shape))
    count = f"{sum(difference.elements for difference in differences)} of {whole.numel()} elements differ"
    if tolerance is None:
        return f"{count}; worst at {where}: {worst.actual}, expected {worst.expected}"
    beyond = f"by more than rtol={tolerance.relative:g}, atol={tolerance.absolute:.3g}"
    ratios = [difference.relative for difference in differences if difference.relative is not None]
    largest = f", max relative error {max(ratios):.3g}" if ratios else ""
    values = f"{worst.actual:.6g}, expected {worst.expected:.6g}; max absolute error {worst.error:.3g}{largest}"
    return f"{count} {beyond}; worst at {where}: {values}"


def _is_inexact(tensor: Any) -> bool:
    return bool(tensor.dtype.is_floating_point or tensor.dtype.is_complex)


def _bytes(tensor: Any) -> Any:
    import torch

    return tensor.view(torch.uint8)


def _signed(tensor: Any) -> Any:
    """Integers as signed ones of the same bytes, where torch can do little to unsigned ones."""
    import torch

    name = _SIGNED.get(str(tensor.dtype).removeprefix("torch."))
    return tensor if name is None else tensor.view(getattr(torch, name))


def _exact(tensor: Any) -> Any:
    """Integers as 64-bit ones, of the same value wherever those have it."""
    import torch

    return tensor.to(torch.int64)


def _bits(dtype: Any) -> int:
    import torch

    return int(torch.finfo(dtype).bits)


def _widened(tensor: Any) -> Any:
    import torch

    if tensor.dtype in (torch.float64, torch.complex64, torch.complex128):
        return tensor
    return tensor.to(torch.float32 if tensor.dtype.is_floating_point else torch.float64)


def _root_mean_square(tensor: Any) -> float:
    """Of the finite ones; 0 where there are none."""
    import torch

    norm = torch.zeros((), dtype=torch.float64, device=tensor.device)
    count = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for part in map(_widened, _parts(tensor)):
        finite = part.isfinite()
        values = torch.where(finite, part.abs(), 0)
        norm = torch.hypot(norm, torch.linalg.vector_norm(values, dtype=torch.float64))
        count = count + finite.sum()
    return float(norm / count.clamp(min=1).sqrt())
