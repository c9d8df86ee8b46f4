"""Arguments of CUDA kernels: cupy arrays become torch tensors on the same memory, everything becomes bytes.

A launch hands over the address of each argument's bytes, of which the driver copies as many as the parameter has.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

from pytest_kerneltune.errors import KernelError, UsageError

_WIDE = 8  # bytes; no plain number is wider
_FLOATS = {2: "<e", 4: "<f", 8: "<d"}


def as_argument(position: int, value: Any) -> Any:
    """``value`` as a kernel keeps it, cupy arrays as tensors; raises UsageError where a kernel cannot take it."""
    import torch

    where = f"CudaKernel(args=...): argument {position}"
    if is_cupy_array(value):
        value = _tensor(where, value)
    if isinstance(value, torch.Tensor):
        if not value.is_cuda:
            raise UsageError(f"{where} is a tensor on {value.device}: a kernel needs it on the GPU (device='cuda')")
        return value
    _scalar_bytes(value, _WIDE, where, UsageError)
    return value


def is_cupy_array(value: Any) -> bool:
    """Whether ``value`` is one of cupy's arrays (numpy's and torch's are not)."""
    return type(value).__module__.partition(".")[0] == "cupy" and hasattr(value, "__cuda_array_interface__")


def _tensor(where: str, array: Any) -> Any:
    import torch

    try:
        return torch.as_tensor(array, device=f"cuda:{array.device.id}")
    except (TypeError, RuntimeError) as error:
        raise UsageError(f"{where} is a cupy array that torch cannot hold ({array.dtype}: {error})") from None


def array_reducer() -> tuple[type, Callable[[Any], Any]]:
    """The type of cupy's arrays, and their reducer for ``packing.pack``: what shares memory with a tensor does so
    where it is unpacked, too."""
    import cupy

    def reduce(array: Any) -> Any:
        import torch

        return _as_array, (torch.as_tensor(array, device=f"cuda:{array.device.id}"),)

    return cupy.ndarray, reduce


def _as_array(tensor: Any) -> Any:
    import cupy

    return cupy.asarray(tensor.detach())


class Parameters:
    """Arguments in memory: ``address`` is that of an array of their addresses, valid while this object is kept.

    ``sizes`` are the bytes of the kernel's parameters (None: unknown). A Python float becomes the floating type of its
    parameter's size (double where that is unknown), an int or bool an integer of it. Raises KernelError where number
    or size do not fit.
    """

    def __init__(self, arguments: Sequence[Any], sizes: Sequence[int] | None) -> None:
        if sizes is not None and len(sizes) != len(arguments):
            raise KernelError(f"the kernel has {len(sizes)} parameters, and args= has {len(arguments)}")
        known: Sequence[int | None] = [None] * len(arguments) if sizes is None else sizes
        encoded = [_encoded(i, value, size) for i, (value, size) in enumerate(zip(arguments, known, strict=True))]
        self._values = [ctypes.create_string_buffer(content, max(_WIDE, len(content))) for content in encoded]
        self._addresses = (ctypes.c_void_p * len(encoded))(*map(ctypes.addressof, self._values))
        self.address = ctypes.addressof(self._addresses)


def _encoded(position: int, value: Any, size: int | None) -> bytes:
    where = f"argument {position}"
    if hasattr(value, "data_ptr"):
        content = struct.pack("<Q", value.data_ptr())
    else:
        content = _scalar_bytes(value, size or _WIDE, where, KernelError)
    if size is not None and size != len(content):
        raise KernelError(f"{where} ({type(value).__name__}) has {len(content)} bytes, its parameter has {size}")
    return content


def _scalar_bytes(value: Any, size: int, where: str, error: type[Exception]) -> bytes:
    """``value`` in little-endian bytes, Python numbers in ``size`` of them."""
    import numpy as np

    if value is None:
        return bytes(_WIDE)
    if isinstance(value, ctypes._SimpleCData | ctypes.Structure | ctypes.Array):
        return bytes(value)
    if isinstance(value, np.generic | np.ndarray) and value.shape == () and not value.dtype.hasobject:
        return value.tobytes()
    if isinstance(value, float) and size not in _FLOATS:
        raise error(f"{where} is a float, and no floating type has {size} bytes")
    try:
        if isinstance(value, int):  # bool, too
            return value.to_bytes(size, "little", signed=value < 0)
        if isinstance(value, float):
            return struct.pack(_FLOATS[size], value)
    except OverflowError:
        raise error(f"{where} is {value}, which {size} bytes do not hold") from None
    raise error(
        f"{where} is a {type(value).__name__}; pass CUDA tensors, cupy arrays, numbers, numpy scalars or ctypes values"
    )
