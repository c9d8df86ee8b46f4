"""NVRTC, NVIDIA's compiler library, through cupy: CUDA C++ to a cubin, in a process that never touches a GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pytest_kerneltune.backends.cubin import Signature, signature, usage
from pytest_kerneltune.errors import KernelError

_FOLDER = "/kerneltune"  # no such directory: quoted includes must not be found where a compile worker happens to run
_REPORT = "--ptxas-options=-v"
_ERROR = re.compile(
    r"^(?P<file>[^\n(]*)\((?P<line>\d+)\): (?:catastrophic )?error\s*(?:#\S+)?: (?P<text>.*)$", re.MULTILINE
)
_TOO_MUCH_SHARED = re.compile(r"uses too much shared data \((\w+) bytes, (\w+) max\)")


class SharedMemoryExceeded(KernelError):
    """A kernel that declares more shared memory than a block may; ``needed`` and ``limit`` are bytes."""

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(f"it declares {needed} bytes of shared memory, and a block may declare {limit}")
        self.needed, self.limit = needed, limit


@dataclass(frozen=True)
class Code:
    """A compiled kernel: ``name`` is the compiler's, ``usage`` has "registers" and "stack_bytes" of a thread and the
    declared "shared_bytes" of a block (empty where ptxas did not say), ``log`` is what the compiler printed."""

    cubin: bytes
    name: str
    usage: Mapping[str, int] = field(default_factory=dict)
    log: str = ""

    @property
    def signature(self) -> Signature:
        return signature(self.cubin, self.name)


def compile_code(source: str, label: str, function: str, options: Sequence[str]) -> Code:
    """``source``, called ``label`` in messages, compiled; ``function`` is a kernel's name or a C++ expression for it.

    Raises KernelError with one line that says what is wrong, and prints the whole log first.
    """
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source, f"{_FOLDER}/{label}", (), ())
    try:
        nvrtc.addNameExpression(program, function)
        nvrtc.compileProgram(program, (_REPORT, *options))
        name = nvrtc.getLoweredName(program, function)
        log = _printable(nvrtc.getProgramLog(program))
        cubin = nvrtc.getCUBIN(program)
        # NVRTC 13.0 reports nothing where it compiled the same before: the cubin tells then.
        return Code(cubin, name, {**usage(cubin, name), **_reported(log, name)}, log)
    except nvrtc.NVRTCError as error:
        log = _printable(nvrtc.getProgramLog(program))
        print(log, flush=True)  # noqa: T201 - the worker's output is kept as the config's log
        if found := _TOO_MUCH_SHARED.search(log):
            raise SharedMemoryExceeded(int(found[1], 0), int(found[2], 0)) from None
        raise KernelError(_reason(log, function, label) or f"NVRTC failed: {error}") from None
    finally:
        nvrtc.destroyProgram(program)


@cache
def compiler_version() -> str:
    """NVRTC's version in full, as it writes it into what it compiles."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram("", "empty.cu", (), ())
    try:
        nvrtc.compileProgram(program, ())
        text = nvrtc.getPTX(program).decode(errors="replace")
    finally:
        nvrtc.destroyProgram(program)
    lines = [line for line in text.splitlines() if line.startswith("//") and len(line) > 2]
    return "; ".join([str(nvrtc.getVersion()), *lines])


@cache
def toolkit_headers() -> tuple[Path, ...]:
    """Directories of CUDA's own headers (cuda_fp16.h, cuda/std/...); none where only NVRTC is installed."""
    try:
        from cuda.pathfinder import find_nvidia_header_directory
    except ImportError:  # older cupy does not come with it
        from cupy.cuda import get_cuda_path

        root = get_cuda_path()
        found = [str(Path(root, "include"))] if root else []
    else:
        found = [find_nvidia_header_directory(part) for part in ("cudart", "cccl")]
    return tuple(Path(folder) for folder in found if folder and Path(folder).is_dir())


def _printable(log: str) -> str:
    return log.replace("\0", "").replace(f"{_FOLDER}/", "").strip()


def _reported(log: str, name: str) -> dict[str, int]:
    """What ptxas reports of the kernel ``name``."""
    part = log.partition(f"Compiling entry function '{name}'")[2].partition("Compiling entry function")[0]
    registers = re.search(r"Used (\d+) registers", part)
    stack = re.search(r"(\d+) bytes stack frame", part)
    if registers is None or stack is None:
        return {}
    shared = re.search(r"(\d+) bytes smem", part)
    return {
        "registers": int(registers[1]),
        "stack_bytes": int(stack[1]),
        "shared_bytes": int(shared[1]) if shared else 0,
    }


def _reason(log: str, function: str, label: str) -> str:
    """The first error, with the line it is in."""
    found = _ERROR.search(log)
    if found is None:
        lines = [line.strip() for line in log.splitlines()]
        return next((line for line in lines if "error" in line or "fatal" in line), lines[0] if lines else "")
    if found["file"] == "__nv_name_map":
        return f"there is no kernel {function!r}: {found['text']}"
    return f"line {found['line']} of {Path(found['file']).name or label}: {found['text']}"
