"""Triton's JIT functions away from home: sent to another process, and compiled where there is no GPU.

A kernel is compiled through the JIT's own launch path (``JITFunction.run`` with ``warmup``), told about the GPU by a
stand-in for Triton's driver and about tensors by stand-ins with their type and alignment. Signature, specialisation
and options therefore hash as they do in the launch, which finds the compiled kernel in Triton's cache directory.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import itertools
import linecache
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

from pytest_kerneltune.errors import KernelError

_ALIGNMENT = 256  # stand-ins keep addresses modulo this; Triton specialises on multiples of 16
_REASON_LIMIT = 300
_CUOBJDUMP_LIMIT_S = 10.0
_OPTIONS = {
    "version": "version",
    "do_not_specialize": "do_not_specialize",
    "do_not_specialize_on_alignment": "do_not_specialize_on_alignment",
    "debug": "debug",
    "noinline": "noinline",
    "repr": "_repr",
    "launch_metadata": "launch_metadata",
}
"""Arguments of ``triton.jit`` to the attributes of a JITFunction that hold them."""


class CompileError(KernelError):
    """A kernel that Triton or ptxas rejects; the text is one line."""


class Target(NamedTuple):
    """What a kernel is compiled for, and what one of its blocks may use there (bytes, threads)."""

    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int
    threads: int = 1024


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


@dataclass(frozen=True)
class TensorStandIn:
    """What the JIT reads of a tensor argument."""

    dtype: Any
    address: int
    size: int

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        return self.size


def stand_in(argument: Any) -> Any:
    """``argument`` without its memory: tensors become stand-ins, inside tuples and descriptors too."""
    if isinstance(argument, tuple | list):
        items = [stand_in(item) for item in argument]
        return type(argument)(*items) if hasattr(argument, "_fields") else type(argument)(items)
    if hasattr(argument, "data_ptr"):
        tensor = getattr(argument, "base", argument) if not hasattr(argument, "untyped_storage") else argument
        return TensorStandIn(argument.dtype, argument.data_ptr() % _ALIGNMENT, tensor.untyped_storage().nbytes())
    if hasattr(getattr(argument, "base", None), "data_ptr"):
        described = copy.copy(argument)
        described.base = stand_in(argument.base)
        return described
    return argument


class Compiler:
    """Compiles configs of one kernel into Triton's cache; lives in a compile worker and never touches a GPU."""

    def __init__(self, packed: bytes, target: Target, cache_dir: str) -> None:
        from pytest_kerneltune.packing import unpack

        self._function, self._args, self._kwargs = unpack(packed)
        self._target, self._cache_dir = target, cache_dir

    def compile(self, keywords: Mapping[str, Any], grid: Sequence[int]) -> dict[str, Any]:
        """What is known of the kernel compiled with ``keywords``; ``keywords`` and ``grid`` are passed through.

        Raises Triton's OutOfResources where a block needs more than the target has (before ptxas, the slowest step,
        is run in vain), else CompileError.
        """
        import triton
        from triton.runtime.errors import OutOfResources

        triton.runtime.driver.set_active(_OfflineDriver(self._target))
        if self._cache_dir:
            triton.knobs.cache.dir = self._cache_dir
        try:
            with _printing_little(), _checked_before_assembly(self._target):
                compiled = self._function.run(*self._args, grid=(1,), warmup=True, **self._kwargs, **keywords)
        except OutOfResources:
            raise
        except Exception as error:  # whatever Triton raises, this config cannot be compiled
            raise CompileError(reason(error)) from error
        metadata = compiled.metadata._asdict()
        _check_resources(metadata, self._target)
        found: dict[str, Any] = {"grid": tuple(grid), "keywords": dict(keywords), "hash": metadata["hash"]}
        found |= {"shared_bytes": metadata["shared"], "threads": metadata["num_warps"] * self._target.warp_size}
        return found | _resource_usage(compiled)


class _OfflineDriver:
    """What the JIT asks a GPU driver before it launches."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(self._target.backend, self._target.arch, self._target.warp_size)


@contextlib.contextmanager
def _printing_little() -> Iterator[None]:
    """Keep what Triton prints, but for the whole assembly text that it prints when ptxas fails."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        sys.stdout.write(re.split(r"\n=+\n", printed.getvalue())[0])


@contextlib.contextmanager
def _checked_before_assembly(target: Target) -> Iterator[None]:
    """Check a kernel's needs as soon as they are known, after the LLVM IR is made."""
    from triton.compiler.compiler import make_backend

    backend = type(make_backend(_OfflineDriver(target).get_current_target()))
    original = backend.add_stages

    def add_stages(self: Any, stages: dict[str, Any], *options: Any) -> None:
        original(self, stages, *options)
        names = list(stages)
        following = dict(itertools.pairwise(names)).get("llir")
        if following is not None:
            stages[following] = _guarded(stages[following], target)

    backend.add_stages = add_stages
    try:
        yield
    finally:
        backend.add_stages = original


def _guarded(stage: Callable[[Any, Any], Any], target: Target) -> Callable[[Any, Any], Any]:
    def checked(source: Any, metadata: dict[str, Any]) -> Any:
        _check_resources(metadata, target)
        return stage(source, metadata)

    return checked


def _check_resources(metadata: Mapping[str, Any], target: Target) -> None:
    from triton.runtime.errors import OutOfResources

    threads = metadata["num_warps"] * target.warp_size
    for needed, limit, name in (
        (metadata["shared"], target.shared_bytes, "shared memory"),
        (threads, target.threads, "threads"),
    ):
        if needed > limit:
            raise OutOfResources(needed, limit, name)


def _resource_usage(compiled: Any) -> dict[str, int]:
    """Registers and stack bytes a thread, as cuobjdump (part of Triton) reads them; {} where it cannot."""
    import triton

    tool = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "cuobjdump"
    if "cubin" not in compiled.asm or not tool.exists():
        return {}
    with tempfile.NamedTemporaryFile(prefix="kerneltune-", suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_CUOBJDUMP_LIMIT_S)
        except (OSError, subprocess.TimeoutExpired):
            return {}
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    return {"registers": int(found[1]), "stack_bytes": int(found[2])} if found else {}


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


def jit_reducers(by_reference: Callable[[str], bool]) -> dict[type, Callable[[Any], Any]]:
    """Reducers for ``packing.pack``: JIT functions of the modules that ``by_reference`` accepts travel as names, all
    others (and those that their names do not lead to) as source and options."""

    def reduce(function: Any) -> tuple[Any, ...]:
        raw = function.fn
        if by_reference(raw.__module__) and _found(sys.modules.get(raw.__module__), raw.__qualname__) is function:
            return _named, (raw.__module__, raw.__qualname__)
        return _reduced_by_value(function)

    return {_jit_type(): reduce}


def _jit_type() -> type:
    from triton.runtime import jit

    found: type = getattr(jit, "JITCallable", jit.JITFunction)
    return found


def _named(module: str, qualname: str) -> Any:
    return _found(import_module(module), qualname)


def _found(module: Any, qualname: str) -> Any:
    """The JIT function of that name in a module, under whatever decorators it has there; None if there is none."""
    found = module
    for name in qualname.split("."):
        found = getattr(found, name, None)
    while not isinstance(found, _jit_type()) and hasattr(found, "fn"):
        found = found.fn
    return found


def _reduced_by_value(function: Any) -> tuple[Any, ...]:
    raw: FunctionType = function.fn
    lines, start = _source(function)
    options = {k: v for k, attribute in _OPTIONS.items() if (v := getattr(function, attribute, None)) is not None}
    # Triton reads annotations, too, whose names Python's bytecode does not mention.
    read = {name: raw.__globals__[name] for name in _annotation_names(lines) if name in raw.__globals__}
    return _rebuilt, (type(function), raw, lines, start, options), read, None, None, _provide


def _annotation_names(lines: Sequence[str]) -> list[str]:
    nodes = ast.walk(ast.parse(textwrap.dedent("".join(lines))))
    annotations = [node.annotation for node in nodes if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation]
    return sorted({node.id for part in annotations for node in ast.walk(part) if isinstance(node, ast.Name)})


def _source(function: Any) -> tuple[list[str], int]:
    """The lines of a function and the number of the first: its first decorator's."""
    start: int = function.starting_line_number
    if hasattr(function, "raw_src"):
        return list(function.raw_src), start
    return ["@triton.jit\n", *function.src.splitlines(keepends=True)], start  # older Triton keeps no decorators


def _rebuilt(kind: Any, raw: FunctionType, lines: list[str], start: int, options: dict[str, Any]) -> Any:
    filename = raw.__code__.co_filename
    linecache.checkcache(filename)
    known = linecache.getlines(filename)
    if known[start - 1 : start - 1 + len(lines)] != lines:  # the file is not here, or was edited since
        known = [*(known + ["\n"] * start)[: start - 1], *lines]
        linecache.cache[filename] = (sum(map(len, known)), None, known, filename)
    return kind(raw, **options)


def _provide(function: Any, read: Mapping[str, Any]) -> None:
    function.fn.__globals__.update(read)
