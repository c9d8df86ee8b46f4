"""C kernels: built by the system's C compiler into a shared library, called through ctypes in an isolated worker.

A config becomes compiler arguments: ``TILE=8`` is ``-DTILE=8`` (True and False are 1 and 0, None defines nothing, a
tuple is joined by commas), a string that begins with ``-`` is passed as flags, and a parameter whose own name begins
with ``-`` is a flag (``-funroll-loops`` of True or False, ``-O`` of 2 or 3).
"""

from __future__ import annotations

import copy
import hashlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pytest_kerneltune.backends import Build, CompileTask, Description
from pytest_kerneltune.backends.c_program import RETURNS, CProgram, bind, describe_argument, is_array
from pytest_kerneltune.backends.headers import find_headers
from pytest_kerneltune.errors import KernelError, UsageError
from pytest_kerneltune.source.arrays import aliases
from pytest_kerneltune.source.csource import c_source_digest_text, canonical_c
from pytest_kerneltune.trial import Clock, Config

DEFAULT_FLAGS = ("-O3", "-march=native")
_SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_SUFFIXES = (".c", ".h", ".cc", ".cpp")
_DIRECTORY_OPTIONS = ("-I", "-iquote", "-isystem", "-idirafter")
_FILE_OPTIONS = ("-include", "-imacros")
_LINKER_OPTIONS = ("-L", "-Wl,-rpath,", "-Wl,-rpath=")
_OUTPUT_LIMIT = 1 << 20


class CKernel:
    """A C function to tune.

    ``source`` is C text, or the path of a file; ``function`` the name of an exported function in it; ``args`` what it
    is called with: numpy arrays (C-contiguous; passed as pointers), ints (as ``long``), floats (as ``double``), numpy
    scalars (as their own type) and ctypes values. ``output`` is the argument (or a list of them) that it writes;
    ``reference()`` returns what must then be in there. ``returns`` is int (C ``long``) or float (``double``) where the
    result is returned.
    ``clock`` "thread" counts the CPU time of the calling thread; use "wall" for a kernel with threads of its own.
    ``check(actual, expected)`` replaces the comparison within ``rtol`` and ``atol``. Raises UsageError.
    """

    kind = "c"
    isolated = True

    def __init__(
        self,
        source: str | Path,
        function: str,
        args: Sequence[Any] = (),
        output: Any = None,
        reference: Callable[[], Any] | None = None,
        *,
        flags: Sequence[str] = DEFAULT_FLAGS,
        compiler: str = "cc",
        returns: type | None = None,
        clock: Literal["thread", "wall"] = "thread",
        rtol: float | None = None,
        atol: float | None = None,
        check: Callable[[Any, Any], bool] | None = None,
    ) -> None:
        self.source, self._directory = _read(source)
        if not isinstance(args, tuple | list):
            raise UsageError(
                f"CKernel(args=...) must be a tuple of the function's arguments, not {type(args).__name__}"
            )
        if not isinstance(function, str) or not re.fullmatch(r"[A-Za-z_]\w*", function):
            raise UsageError(f"CKernel(function={function!r}) must be the name of a C function")
        if returns not in RETURNS:
            raise UsageError(f"CKernel(returns={returns!r}): use int, float or None")
        if clock not in ("thread", "wall"):
            raise UsageError(f"CKernel(clock={clock!r}): use 'thread' or 'wall'")
        if isinstance(flags, str):
            raise UsageError(f"CKernel(flags={flags!r}) must be a list of flags: {shlex.split(flags)!r}")
        for name, value in (("reference", reference), ("check", check)):
            if value is not None and not callable(value):
                raise UsageError(f"CKernel({name}=...) must be callable, not {value!r}")
        self.function, self.args, self.flags, self.compiler = function, tuple(args), tuple(flags), compiler
        self._clock: Clock = clock
        outputs = _positions(self.args, output)
        if reference is not None and not outputs and returns is None:
            raise UsageError("CKernel(reference=...) needs output= (the argument that the kernel writes) or returns=")
        for position, value in enumerate(self.args):
            describe_argument(position, value)
        _refuse_overlaps(self.args, outputs)
        self._program = CProgram(self.args, function, outputs, reference, returns, (rtol, atol), check)

    @property
    def clock(self) -> Clock:
        return self._clock

    def describe(self) -> Description:
        # Not by their paths, which differ from checkout to checkout, but by the headers that are found in them.
        flags, folders = _without_directories(self.flags)
        facts = [f"function {self.function}", f"compiler {self.compiler} {' '.join(flags)}", *aliases(self.args)]
        if folders:
            texts = find_headers(self.source, [*([Path(self._directory)] if self._directory else []), *folders]).texts
            canonical = repr([(name, canonical_c(text)) for name, text in texts])
            facts.append(f"headers: {hashlib.sha256(canonical.encode()).hexdigest()}")
        return Description(
            "c",
            source=self.source,
            directory=self._directory,
            inputs=tuple(describe_argument(i, value) for i, value in enumerate(self.args)),
            facts=tuple(facts),
        )

    def compile_task(self, config: Config) -> CompileTask:
        args = [*self.flags, *compiler_arguments(config)]
        return CompileTask(f"{__name__}:Compiler", (self.compiler, self.source, self._directory), "compile", (args,))

    def program(self) -> CProgram:
        return copy.copy(self._program)

    def packed(self, by_value: Sequence[Any]) -> bytes:
        from pytest_kerneltune.packing import pack

        return pack(self._program, by_value)

    def launch_env(self) -> Mapping[str, str]:
        # The thread clock sees one thread: the reference must not spread its work over others.
        return _SINGLE_THREADED if self._clock == "thread" else {}

    def __call__(self, config: Config, artifact: Any) -> Any:
        returned = bind(artifact, self.function, self._program.returns, self.args)()
        written = [self.args[i] for i in self._program.outputs]
        return returned if self._program.returns else (written[0] if len(written) == 1 else tuple(written) or None)


class Compiler:
    """Builds shared libraries; lives in a compile worker, whose process group is killed past the limit."""

    def __init__(self, compiler: str, source: str, directory: str) -> None:
        self._compiler, self._source, self._directory = compiler, source, directory

    def compile(self, arguments: Sequence[str]) -> Build:
        """The library's bytes; raises KernelError with the compiler's first error line."""
        if shutil.which(self._compiler) is None:
            raise KernelError(f"no C compiler called {self._compiler!r} is on the PATH: install one, or pass compiler=")
        with tempfile.TemporaryDirectory(prefix="kerneltune-") as folder:
            source, library = Path(folder, "kernel.c"), Path(folder, "kernel.so")
            source.write_text(self._source)
            include = ["-I", self._directory] if self._directory else []
            # The arguments come before the source and -lm after it, where a linker looks for what it misses.
            command = [self._compiler, "-shared", "-fPIC", *arguments, *include, "-o", str(library), str(source), "-lm"]
            # Into a file, whose size is limited: what comes through a pipe would pile up in memory.
            with Path(folder, "output").open("w+b") as output:
                status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output).returncode
                output.seek(0)
                text = output.read(_OUTPUT_LIMIT).decode(errors="replace")
            print(text, flush=True)  # noqa: T201 - the worker's output is kept as the config's log
            if status:
                how = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
                raise KernelError(_first_error(text, folder) or f"the compiler {how}")
            if not library.exists():
                raise KernelError(f"{self._compiler} reported success, but left no library")
            code = library.read_bytes()
            return Build(code, hashlib.sha256(code).hexdigest())


def compiler_arguments(config: Config) -> list[str]:
    """A config as compiler arguments (see the module's docstring); raises UsageError for a name C can't define."""
    arguments = []
    for name, value in config.items():
        if name.startswith("-"):
            arguments += [] if value in (False, None) else [name if value is True else f"{name}{value}"]
        elif isinstance(value, str) and value.startswith("-"):
            arguments += shlex.split(value)
        elif value is not None and value != "":
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise UsageError(
                    f"parameter {name!r} cannot be a C macro: use a C identifier, or a name beginning with -"
                )
            arguments.append(f"-D{name}={_macro(value)}")
    return arguments


def _without_directories(flags: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Flags with "..." for each directory of headers, and those directories."""
    kept: list[str] = []
    folders: list[Path] = []
    for i, flag in enumerate(flags):
        option = next((o for o in _DIRECTORY_OPTIONS if flag.startswith(o)), None)
        if option is not None and flag != option:
            folders.append(Path(flag.removeprefix(option)))
            kept.append(f"{option}...")
        elif i and flags[i - 1] in _DIRECTORY_OPTIONS:
            folders.append(Path(flag))
            kept.append("...")
        else:
            kept.append(_without_path(flag))
    return kept, folders


def _without_path(flag: str) -> str:
    """A flag that names a file by that file's name and content, one that names a linker's directory without it."""
    option = next((o for o in _FILE_OPTIONS + _LINKER_OPTIONS if flag.startswith(o)), "")
    path = Path(flag.removeprefix(option))
    if option in _LINKER_OPTIONS and path.is_absolute():
        return f"{option}..."
    try:
        data = path.read_bytes() if path.is_absolute() and path.is_file() else None
    except OSError:  # the compiler says so better
        data = None
    if data is None:
        return flag
    if path.suffix in _SUFFIXES:
        data = c_source_digest_text(data.decode(errors="replace"), path.parent).encode()
    return f"{option}{path.name} {hashlib.sha256(data).hexdigest()}"


def _macro(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(map(_macro, value)) if isinstance(value, list | tuple) else str(value)


def _read(source: str | Path) -> tuple[str, str]:
    """The C text, and the directory that its quoted includes are found in ("" for text that is no file)."""
    if isinstance(source, str) and not ("\n" not in source and source.endswith(_SUFFIXES)):
        return source, ""
    path = Path(source)
    try:
        return path.read_text(), str(path.resolve().parent)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"CKernel(source={str(source)!r}) cannot be read: {error}") from None


def _positions(args: Sequence[Any], output: Any) -> tuple[int, ...]:
    """Which of ``args`` the kernel writes; ``output`` is one of them, or a list or tuple of them."""
    if output is None:
        return ()
    wanted = output if isinstance(output, list | tuple) else [output]
    found = []
    for item in wanted:
        position = next((i for i, a in enumerate(args) if a is item), None)
        if position is None or not is_array(item):
            raise UsageError(
                "CKernel(output=...) must be one of the arrays in args (the same object), or a list of them"
            )
        found.append(position)
    return tuple(found)


def _refuse_overlaps(args: Sequence[Any], outputs: Sequence[int]) -> None:
    """The kernel runs on copies: an array that shares memory with another would no longer do so."""
    import numpy as np

    for i in outputs:
        for j, other in enumerate(args):
            if is_array(other) and other is not args[i] and np.may_share_memory(other, args[i]):
                raise UsageError(f"CKernel(args=...): argument {j} overlaps the output, argument {i}; pass a copy")


def _first_error(text: str, folder: str) -> str:
    lines = [line.replace(f"{folder}/", "") for line in text.splitlines()]
    errors = [line for line in lines if "error" in line.lower() or "undefined" in line]
    return (errors or lines or [""])[0].strip()
