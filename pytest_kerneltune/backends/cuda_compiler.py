"""Builds configs of a CUDA kernel, and refuses those that cannot be launched, before they are compiled or after.

Compiled kernels are kept under a digest of all that they follow from: source, headers, options, GPU and compiler.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pytest_kerneltune.backends import Build
from pytest_kerneltune.backends.code_store import CodeStore, Entry
from pytest_kerneltune.backends.headers import find_headers
from pytest_kerneltune.backends.machine_code import without_debugging
from pytest_kerneltune.backends.nvrtc import Code, SharedMemoryExceeded, compile_code, compiler_version, toolkit_headers
from pytest_kerneltune.backends.resources import Limits, demand

_SCHEMA = 1
_BLOCK_SIZES = (1024, 1024, 64)
_GRID_SIZES = (2**31 - 1, 65535, 65535)


class Target(NamedTuple):
    """What is compiled for ("sm_90a"), and what one block may use there."""

    architecture: str
    limits: Limits


class Launch(NamedTuple):
    """How a config is launched: three sizes each, and the bytes of dynamic shared memory of a block."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int = 0

    @property
    def threads(self) -> int:
        x, y, z = self.block
        return x * y * z

    @property
    def refused(self) -> str:
        """Why no GPU launches this; "" where it may."""
        for name, sizes, limits in (("block", self.block, _BLOCK_SIZES), ("grid", self.grid, _GRID_SIZES)):
            if not all(1 <= size <= limit for size, limit in zip(sizes, limits, strict=True)):
                return f"its {name} is {sizes}: each size must be at least 1, and at most {limits}"
        return ""


class Compiler:
    """Compiles configs of one source; lives in a compile worker.

    ``label`` names the source in messages, ``directories`` are where its headers are looked for, ``store`` is where
    compiled kernels are kept ("": nowhere).
    """

    def __init__(self, source: str, label: str, directories: Sequence[str], target: Target, store: str) -> None:
        self._source, self._label, self._target = source, label, target
        self._store = CodeStore(Path(store)) if store else None
        self._directories = [Path(directory) for directory in directories]

    def compile(self, function: str, options: Sequence[str], launch: Launch) -> Build:
        """The config that compiles with ``options``; raises KernelError with the compiler's first error."""
        usage = {"threads": launch.threads, "shared_bytes": launch.shared_bytes}
        if (early := self._judged(usage, launch.refused)).refused:
            return early
        try:
            code = self._code(function, options)
        except SharedMemoryExceeded as error:
            usage["shared_bytes"] += error.needed
            return Build(usage=usage, demand=error.needed / error.limit, refused=str(error))
        print(code.log, flush=True)  # noqa: T201 - the worker's output is kept as the config's log
        usage = {**usage, **code.usage, "shared_bytes": launch.shared_bytes + code.usage.get("shared_bytes", 0)}
        signature = code.signature
        bounded = f"its block has {launch.threads} threads, and its __launch_bounds__ allow {signature.threads}"
        judged = self._judged(usage, bounded if 0 < signature.threads < launch.threads else "")
        if judged.refused:
            return judged
        artifact = {"cubin": code.cubin, "name": code.name, "launch": launch, "parameters": signature.parameters}
        return Build(artifact, _digest(without_debugging(code.cubin).hex(), code.name, launch), usage, judged.demand)

    def _judged(self, usage: Mapping[str, int], refused: str) -> Build:
        """A Build without an artifact that says what share of the GPU's limits ``usage`` takes."""
        share, too_much = demand(usage, self._target.limits)
        return Build(usage=dict(usage), demand=share, refused=refused or too_much)

    def _code(self, function: str, options: Sequence[str]) -> Code:
        complete = [*options, f"--gpu-architecture={self._target.architecture}"]
        key = _digest(self._identity, function, complete)
        store = self._store if self._identity else None
        if store is not None and (kept := _kept(store.get(key))) is not None:
            return kept
        folders = [f"--include-path={folder}" for folder in (*self._directories, *toolkit_headers())]
        code = compile_code(self._source, self._label, function, [*complete, *folders])
        if store is not None:
            store.put(key, Entry(code.cubin, {"name": code.name, "usage": dict(code.usage), "log": code.log}))
        return code

    @cached_property
    def _identity(self) -> str:
        """A digest of the source and all that it may include; "" where that cannot be known."""
        headers = find_headers(self._source, self._directories, toolkit_headers())
        if not headers.complete:
            return ""
        return _digest(_SCHEMA, compiler_version(), self._label, self._source, headers.texts)


def _kept(entry: Entry | None) -> Code | None:
    """What ``put`` was given; None where the entry is another's, such as that of another version."""
    if entry is None or not isinstance(entry.result, bytes):
        return None
    try:
        return Code(entry.result, **entry.notes)
    except TypeError:
        return None


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
