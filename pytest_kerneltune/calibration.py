"""Kernels of ours for NVIDIA GPUs, frozen as PTX: fixed work that tells how fast a GPU runs, and a wait.

A stored latency divided by that of "copy" or "arithmetic" means the same in a year, whatever was installed since: they
need nothing but the driver, which compiles them when they are loaded. "copy" moves more than caches hold, and feels the
memory; "arithmetic" keeps every multiprocessor busy with a chain of operations, and feels their clock alone.

They are launched through the driver's API, on torch's current stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

COPY, ARITHMETIC = "copy", "arithmetic"

_THREADS = 256  # of a block, as the PTX has it
_BLOCK_BYTES = 16 * _THREADS  # that a block copies
_COPIED_BYTES = 32 * 2**20  # about 20 us at 4 TB/s
_ROUNDS = 400  # of 16 operations, one after the other: with what a launch costs, about 20 us at 2 GHz


class Launch:
    """A launch of a loaded kernel, with its arguments, on torch's current stream.

    Calling it raises RuntimeError with the driver's text where the driver refuses.
    """

    def __init__(
        self, driver: Driver, function: ctypes.c_void_p, blocks: int, threads: int, *arguments: Any, keep: Any = None
    ) -> None:
        """``arguments`` are ctypes values; ``keep`` is what owns the memory that they point to."""
        import torch

        self._driver, self._kept = driver, (arguments, keep)
        self._stream: Callable[[], Any] = torch.cuda.current_stream
        self._how = (function, blocks, 1, 1, threads, 1, 1, 0)
        self._addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))

    def __call__(self) -> None:
        status = self._driver.launch(*self._how, self._stream().cuda_stream, self._addresses, None)
        if status:
            raise RuntimeError(self._driver.text("cuLaunchKernel", status))


class Driver:
    """NVIDIA's driver, with our kernels loaded in the current device's primary context, which torch uses.

    Raises RuntimeError where there is no such driver, or it refuses.
    """

    def __init__(self, device: int) -> None:
        """``device`` is the number of the current device."""
        import torch

        if getattr(torch.version, "hip", None):
            raise RuntimeError("these kernels are for NVIDIA GPUs; this PyTorch is for AMD's")
        torch.cuda.synchronize(device)  # makes the context, and makes it current
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise RuntimeError(f"no NVIDIA driver: {error}") from None
        self.launch = self._library.cuLaunchKernel
        pointer, number = ctypes.c_void_p, ctypes.c_uint
        self.launch.argtypes = [pointer, *[number] * 7, pointer, pointer, pointer]
        self._module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(self._module), ptx())

    def function(self, name: str) -> ctypes.c_void_p:
        """The kernel of that name."""
        found = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(found), self._module, name.encode())
        return found

    def text(self, what: str, status: int) -> str:
        """What the driver says of a status that is not 0."""
        words = ctypes.c_char_p()
        self._library.cuGetErrorString(status, ctypes.byref(words))
        return f"{what}: {(words.value or b'unknown error').decode()} ({status})"

    def _call(self, name: str, *arguments: Any) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise RuntimeError(self.text(name, status))


def calibration_launches() -> dict[str, Launch]:
    """What launches "copy" and "arithmetic" on the current device; 64 MiB of its memory are held as long as "copy" is.

    Empty on AMD's GPUs, and where the driver refuses the kernels or there is no such memory left.
    """
    import torch

    try:
        source = torch.arange(_COPIED_BYTES // 4, dtype=torch.int32, device="cuda")
        return {COPY: copy_launch(torch.empty_like(source), source), ARITHMETIC: arithmetic_launch()}
    except RuntimeError:
        return {}


def copy_launch(target: Any, source: Any) -> Launch:
    """Copies the contiguous tensor ``source`` to ``target``, of the same size; raises ValueError where that is not a
    multiple of 4 KiB."""
    size = source.numel() * source.element_size()
    if size % _BLOCK_BYTES or size != target.numel() * target.element_size():
        raise ValueError(f"copies are of equal size and a multiple of {_BLOCK_BYTES} bytes, not {size}")
    driver, addresses = _driver(), [ctypes.c_void_p(tensor.data_ptr()) for tensor in (target, source)]
    return Launch(driver, driver.function(COPY), size // _BLOCK_BYTES, _THREADS, *addresses, keep=(target, source))


def arithmetic_launch(rounds: int = _ROUNDS) -> Launch:
    """A block of 256 threads for each multiprocessor, each with 16 * ``rounds`` operations one after the other."""
    import torch

    driver, nowhere = _driver(), ctypes.c_void_p()  # the kernel does not write
    blocks = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    factors = ctypes.c_float(0.5), ctypes.c_float(1.0)
    return Launch(driver, driver.function(ARITHMETIC), blocks, _THREADS, nowhere, *factors, ctypes.c_uint(rounds))


def spin_launch(nanoseconds: int = 0, cycles: int = 0) -> Launch:
    """One thread that waits until the GPU's timer has moved by ``nanoseconds``, then its multiprocessor's clock by
    ``cycles``; the timer moves in steps of 32 ns or, on older GPUs, of about 1 us."""
    driver = _driver()
    return Launch(driver, driver.function("spin"), 1, 1, ctypes.c_uint64(nanoseconds), ctypes.c_uint64(cycles))


def ptx() -> bytes:
    """The kernels' code."""
    return Path(__file__).with_suffix(".ptx").read_bytes()


def _driver() -> Driver:
    import torch

    return _loaded(torch.cuda.current_device())


_loaded = cache(Driver)  # a context lives as long as its process
