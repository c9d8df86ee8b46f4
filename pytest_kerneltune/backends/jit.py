"""Triton's JIT functions compiled where there is no GPU.

A kernel is compiled through the JIT's own launch path (``JITFunction.run`` with ``warmup``), told about the GPU by a
stand-in for Triton's driver and about tensors by stand-ins with their type and alignment. Signature, specialisation
and options therefore hash as they do in the launch, which finds the compiled kernel in Triton's cache directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_kerneltune.backends import Build
from pytest_kerneltune.backends.claims import BeingMade, GivenUp
from pytest_kerneltune.backends.machine_code import without_debugging
from pytest_kerneltune.backends.resources import code_usage, demand
from pytest_kerneltune.backends.stages import wrapped_stages
from pytest_kerneltune.backends.toolchain import OfflineDriver, Target, prepare_offline
from pytest_kerneltune.errors import KernelError

_REASON_LIMIT = 300
_PRINTED_LIMIT = 4_000
_FRAMES = 4
_NO_PART_OF_A_LAUNCH = ("hash", "num_stages")  # of a kernel's metadata


class CompileError(KernelError):
    """A kernel that Triton or ptxas rejects; the text is one line."""


class _Refused(Exception):
    """A kernel that asks for more than its device has."""

    def __init__(self, build: Build) -> None:
        super().__init__(build.refused)
        self.build = build


class Compiler:
    """Compiles configs of one kernel into Triton's cache; lives in a compile worker and never touches a GPU."""

    def __init__(self, packed: bytes, target: Target, cache_dir: str) -> None:
        from triton.compiler.compiler import make_backend
        from triton.runtime import driver

        from pytest_kerneltune.packing import unpack

        self._target, self._cache_dir = target, cache_dir
        self._store = prepare_offline(target, cache_dir)
        self._function, self._args, self._kwargs = unpack(packed)
        backend = make_backend(driver.active.get_current_target())
        self._backend = type(backend)
        _ = backend.hash(), self._function.cache_key  # ptxas --version, and the function's dependencies: kept by both

    def warm(self) -> None:
        """Answers when this is built, and the first config need not wait for that."""

    def compile(self, keywords: Mapping[str, Any], grid: Sequence[int]) -> Build:
        """The kernel compiled with ``keywords``; ``keywords`` and ``grid`` are in its artifact.

        Refused are those of which a block needs more than the target has: where that is shared memory or threads,
        before ptxas, the slowest step, is run in vain. Raises CompileError; BeingMade where another worker is compiling
        the same code, GivenUp where one was killed over it.
        """
        try:
            with self._active():
                compiled = self._function.run(*self._args, grid=(1,), warmup=True, **self._kwargs, **keywords)
        except _Refused as refused:
            return refused.build
        except (BeingMade, GivenUp):
            raise
        except Exception as error:  # whatever Triton raises, this config cannot be compiled
            # Not chained: ptxas may have thousands of lines to say.
            sys.stdout.write("".join(traceback.format_exception(error, limit=-_FRAMES))[:_PRINTED_LIMIT])
            raise CompileError(reason(error)) from None
        return self._build(compiled, keywords, tuple(grid))

    @contextlib.contextmanager
    def _active(self) -> Iterator[None]:
        """Triton as this kernel needs it: the worker may have compiled another's between two configs."""
        import triton

        triton.runtime.driver.set_active(OfflineDriver(self._target))
        if self._cache_dir:
            triton.knobs.cache.dir = self._cache_dir
        with _printing_little(), wrapped_stages(self._backend, self._check, self._store):
            yield

    def _check(self, metadata: Mapping[str, Any]) -> None:
        build = self._measured(self._usage(metadata))
        if build.refused:
            raise _Refused(build)

    def _usage(self, metadata: Mapping[str, Any]) -> dict[str, int]:
        return {"shared_bytes": metadata["shared"], "threads": metadata["num_warps"] * self._target.warp_size}

    def _measured(self, usage: Mapping[str, int]) -> Build:
        share, refused = demand(usage, self._target.limits)
        return Build(usage=usage, demand=share, refused=refused)

    def _build(self, compiled: Any, keywords: Mapping[str, Any], grid: tuple[int, ...]) -> Build:
        metadata = compiled.metadata._asdict()
        cubin = compiled.asm.get("cubin", b"")
        build = self._measured(
            self._usage(metadata) | (code_usage(cubin, metadata["name"], _cuobjdump()) if cubin else {})
        )
        if build.refused:
            return build
        artifact = {"grid": grid, "keywords": dict(keywords), "hash": metadata["hash"]}
        code = self._code(cubin, metadata, keywords, grid) if cubin else ""
        return Build(artifact, code, build.usage, build.demand)

    def _code(
        self, cubin: bytes, metadata: Mapping[str, Any], keywords: Mapping[str, Any], grid: tuple[int, ...]
    ) -> str:
        """A digest of the machine code and of what the launch hands to it."""
        noted = {name: value for name, value in metadata.items() if name not in _NO_PART_OF_A_LAUNCH}
        values = {p.name: keywords.get(p.name, p.default) for p in self._function.params if not p.is_constexpr}
        passed = {name: repr(v) for name, v in values.items() if name in keywords or v is not inspect.Parameter.empty}
        launch = json.dumps([grid, noted, passed], sort_keys=True, default=str)
        return hashlib.sha256(launch.encode() + b"\0" + without_debugging(cubin)).hexdigest()


def _cuobjdump() -> Path:
    import triton

    return Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "cuobjdump"


@contextlib.contextmanager
def _printing_little() -> Iterator[None]:
    """Keep what Triton prints, but for the whole assembly text that it prints when ptxas fails."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        sys.stdout.write(re.split(r"\n=+\n", printed.getvalue())[0][:_PRINTED_LIMIT])


def reason(error: BaseException) -> str:
    """One line that says why Triton failed: the innermost cause, with the kernel's line where it is known."""
    line = None
    while True:
        line = line or getattr(getattr(error, "node", None), "lineno", None)
        if error.__cause__ is None:
            break
        error = error.__cause__
    text = getattr(error, "error_message", None) or str(error)
    lines = [part.strip() for part in text.splitlines() if part.strip()]
    useful = [part for part in lines if re.match(r"ptxas.*(error|fatal)", part)] or lines or [type(error).__name__]
    found = re.sub(r"^ptxas\S* \S+, line \d+; ", "ptxas ", useful[0])
    name = "" if hasattr(error, "error_message") else f"{type(error).__name__}: "
    place = f"line {line} of the kernel: " if line else ""
    return f"{place}{name}{found}"[:_REASON_LIMIT]
