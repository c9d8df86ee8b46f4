"""What a CudaKernel is made of, checked: each function raises UsageError that names the argument and what to do."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pytest_kerneltune.backends.tensor_arguments import described
from pytest_kerneltune.errors import UsageError

_SUFFIXES = (".cu", ".cuh", ".cpp", ".cc", ".h")
_OURS = {
    ("-I", "--include-path"): "name the directories of headers in include=",
    ("-include", "--pre-include"): "write an #include in the source",
    ("-arch", "--gpu-architecture"): "kernels are compiled for the GPU that is here",
}
"""Options that are not the user's, and what to do instead."""


def require_packages() -> None:
    """See that cupy and torch can be imported."""
    try:
        import cupy  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "CudaKernel needs cupy and torch: pip install 'pytest-kerneltune[cuda]' for CUDA 13, or torch and "
            f"cupy-cuda12x for CUDA 12 ({str(error).strip().splitlines()[0]})"
        ) from None


def read_source(source: Any) -> tuple[str, str, str]:
    """The text, its name in messages, and the directory of its quoted includes ("" for text that is no file)."""
    if isinstance(source, str) and not ("\n" not in source and source.endswith(_SUFFIXES)):
        return source, "kernel.cu", ""
    if not isinstance(source, str | Path):
        raise UsageError(f"CudaKernel(source={source!r:.80}) must be CUDA C++ text, or the path of a file")
    path = Path(source)
    try:
        return path.read_text(encoding="utf-8"), path.name, str(path.resolve().parent)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"CudaKernel(source={str(source)!r}) cannot be read: {error}") from None


def directories(include: Any) -> list[Path]:
    """Absolute paths of directories that exist."""
    if not isinstance(include, tuple | list) or not all(isinstance(item, str | Path) for item in include):
        raise UsageError(f"CudaKernel(include={include!r:.80}) must be a list of directories")
    if missing := [str(item) for item in include if not Path(item).is_dir()]:
        raise UsageError(f"CudaKernel(include=...): {missing[0]} is no directory")
    return [Path(item).resolve() for item in include]


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    """One to three sizes as three."""
    sizes = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not 1 <= len(sizes) <= 3 or not all(hasattr(size, "__index__") and size >= 0 for size in sizes):
        raise UsageError(f"CudaKernel({name}=...): a {name} is one to three whole numbers, not {value!r:.80}")
    return (*(size.__index__() for size in sizes), 1, 1)[:3]


def _bytes(value: Any) -> int:
    if not hasattr(value, "__index__") or value < 0:
        raise UsageError(f"CudaKernel(shared_bytes=...) must be a whole number of bytes, not {value!r:.80}")
    return int(value.__index__())


def checked_options(value: Any) -> tuple[str, ...]:
    """Options of NVRTC, none of which is ours to give."""
    if not isinstance(value, tuple | list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"CudaKernel(options=...) must be a list of options of NVRTC, not {value!r:.80}")
    for prefixes, instead in _OURS.items():
        if ours := [item for item in value if item.startswith(prefixes)]:
            raise UsageError(f"CudaKernel(options=...): {ours[0]} cannot be given: {instead}")
    return tuple(value)


CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "grid": partial(_sizes, "grid"),
    "block": partial(_sizes, "block"),
    "shared_bytes": _bytes,
    "options": checked_options,
}
"""Arguments that may be callables of the config, and what checks their values."""


def described_argument(value: Any) -> str:
    """An argument in words, the same in every process."""
    if isinstance(value, ctypes._SimpleCData | ctypes.Structure | ctypes.Array):
        return f"{type(value).__name__} {bytes(value).hex()}"
    return described(value)
