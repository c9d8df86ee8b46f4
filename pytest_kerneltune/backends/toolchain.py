"""Triton where there is no GPU: the device it compiles for, its cache, and what identifies its installation."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pytest_kerneltune.backends.code_store import CodeStore, Entry
from pytest_kerneltune.backends.resources import THREADS, Limits
from pytest_kerneltune.errors import KernelError

_STORE = "kerneltune-stages"  # beside the folders of Triton's kernels, whose names are 52 letters and digits
_OWN = "own"  # made by the store, for this user alone
_KEY_HOMES = ("triton.runtime.cache", "triton.compiler.compiler")  # the first since Triton 3.4


class Target(NamedTuple):
    """What a kernel is compiled for, and what one of its blocks may use there (bytes, threads)."""

    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int
    threads: int = THREADS

    @property
    def limits(self) -> Limits:
        return Limits(self.shared_bytes, self.threads)


class OfflineDriver:
    """What Triton asks a GPU driver before it launches."""

    def __init__(self, target: Target) -> None:
        self._target, self.utils = target, self

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(self._target.backend, self._target.arch, self._target.warp_size)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._target.shared_bytes}


def current_target() -> Target:
    """The current GPU, as Triton's driver sees it; raises KernelError where there is none."""
    from triton.runtime import driver

    try:
        active = driver.active
        target = active.get_current_target()
        properties = active.utils.get_device_properties(active.get_current_device())
    except RuntimeError as error:
        raise KernelError(f"Triton finds no GPU to compile for: {error}") from None
    return Target(target.backend, target.arch, target.warp_size, int(properties["max_shared_mem"]))


def cache_directory() -> str:
    """Triton's cache directory in this process ("" before Triton 3.4, whose processes inherit it)."""
    import triton

    return str(triton.knobs.cache.dir) if hasattr(triton, "knobs") else ""


def use_cache_directory(directory: str) -> None:
    """Have Triton look for compiled kernels in ``directory`` in this process; "" leaves it as it is."""
    import triton

    if directory:
        triton.knobs.cache.dir = directory


def provide_memory(device: Any) -> None:
    """Have launches in this process give kernels what they ask for beside their arguments, on ``device``.

    Kernels that make tensor descriptors do; their authors call ``triton.set_allocator`` in their own process.
    """
    import torch
    import triton

    def allocated(size: int, alignment: int, stream: int | None) -> Any:  # noqa: ARG001 - torch aligns to 512 bytes
        return torch.empty(size, dtype=torch.int8, device=device)

    if hasattr(triton, "set_allocator"):  # since Triton 3.3
        triton.set_allocator(allocated)


@functools.cache
def warm() -> None:
    """Have Triton do what it does once a process, before the first kernel is compiled or launched here."""
    _recall_toolchain_key(stage_store())
    specialise = getattr(import_module("triton._C.libtriton"), "native_specialize_impl", None)
    if specialise is not None:
        with _without_torch():
            specialise(import_module("triton.backends.compiler").BaseBackend, 0, False, True, True)


def prepare_offline(target: Target, cache_dir: str) -> CodeStore:
    """Have Triton compile for ``target`` into ``cache_dir`` in this process; the store of its stages' results there."""
    import triton

    triton.runtime.driver.set_active(OfflineDriver(target))
    if cache_dir:
        triton.knobs.cache.dir = cache_dir
    warm()
    return stage_store()


def stage_store() -> CodeStore:
    """The store in Triton's cache directory, below a folder that Triton makes as the umask says."""
    from triton.runtime.cache import FileCacheManager

    return CodeStore(Path(FileCacheManager(_STORE).cache_dir, _OWN))


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """In the body torch cannot be imported, if it is not here yet.

    Some versions of Triton import it (a second or two) when they first look at an argument, in order to recognise a
    torch.Tensor sooner, of which a compile worker has none.
    """
    sys.meta_path.insert(0, _NoTorch)
    try:
        yield
    finally:
        sys.meta_path.remove(_NoTorch)


class _NoTorch:
    """A finder that finds no torch, and leaves the search for all else to others."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def toolchain_key() -> str:
    """A digest of all files of Triton that take part in compiling; a part of each compiled kernel's hash."""
    import triton

    home = _key_home()
    return str(triton.__version__ if home is None else home.triton_key())


def _key_home() -> Any:
    """The module in which Triton finds its own key."""
    homes = map(import_module, _KEY_HOMES)
    return next((module for module in homes if hasattr(module, "triton_key")), None)


def _recall_toolchain_key(store: CodeStore) -> None:
    """Have Triton read its library of 400 MB for this key once, and not in each process, while no file changes."""
    home = _key_home()
    if home is None:
        return
    name = hashlib.sha256(f"toolchain\0{_installation()}".encode()).hexdigest()
    entry = store.get(name)
    if entry is None:
        entry = Entry(home.triton_key(), {})
        store.put(name, entry)
    text = entry.result
    home.triton_key = lambda: text


def _installation() -> list[tuple[str, int, int, int]]:
    """Triton's files with sizes and times of change."""
    import triton

    found = []
    for folder, _, names in os.walk(Path(triton.__file__).parent, followlinks=True):
        for path in (Path(folder, name) for name in names if name.endswith((".py", ".so"))):
            state = path.stat()
            found.append((str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return sorted(found)
