"""CUDA C++ kernels: compiled by NVRTC ahead of time (``cuda_compiler.py``), launched in an isolated GPU worker.

A config becomes compiler options as a ``CKernel``'s does (``c.compiler_arguments``): ``TILE=8`` is ``-DTILE=8``, and a
parameter whose own name begins with a dash is an option (``--maxrregcount=`` of 64, ``--use_fast_math`` of True).
What only the user's process can evaluate (grid, block, options) is evaluated there once a config.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from pytest_kerneltune.backends import CompileTask, Description
from pytest_kerneltune.backends.c import compiler_arguments
from pytest_kerneltune.backends.cuda_arguments import array_reducer, as_argument, is_cupy_array
from pytest_kerneltune.backends.cuda_checks import (
    CHECKS,
    checked_options,
    described_argument,
    directories,
    read_source,
    require_packages,
)
from pytest_kerneltune.backends.cuda_compiler import Compiler as Compiler
from pytest_kerneltune.backends.cuda_compiler import Launch, Target
from pytest_kerneltune.backends.cuda_program import CudaProgram, current_target
from pytest_kerneltune.backends.headers import find_headers
from pytest_kerneltune.backends.tensor_arguments import (
    checked_arguments,
    checked_comparison,
    checked_outputs,
    evaluated,
)
from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.source.arrays import aliases
from pytest_kerneltune.source.csource import canonical_c
from pytest_kerneltune.trial import Clock, Config

Sizes: TypeAlias = int | Sequence[int] | Callable[[Config], int | Sequence[int]]
"""One to three sizes, or a callable of the config that returns them."""


class CudaKernel:
    """A CUDA C++ kernel to tune.

    ``source`` is its text, or the path of a file, whose quoted includes are found beside it; further directories of
    headers go into ``include``. ``function`` is the kernel's name, or a C++ expression for it in which macros count
    ("transpose<float, TILE>"). ``args`` are torch CUDA tensors and cupy arrays (passed as pointers), None (a null
    pointer), Python numbers (given the size of their parameter; 2 is an integer, 2.0 a float), numpy scalars (as their
    own type) and ctypes values.
    ``grid``, ``block`` (one to three sizes), ``shared_bytes`` (dynamic shared memory of a block) and ``options`` of
    NVRTC may be callables of the config, run in this process. ``output`` is the array (or a list of them) among
    ``args`` that the kernel writes; ``reference()`` returns what must then be in there, within
    ``atol + rtol * |expected|`` (see ``tensors.mismatch`` for the defaults), or as ``check(actual, expected)`` of two
    tensors says. Raises UsageError that names the argument.
    """

    kind = "cuda"
    isolated = True

    def __init__(
        self,
        source: str | Path,
        function: str,
        args: Sequence[Any],
        grid: Sizes,
        block: Sizes,
        output: Any = None,
        reference: Callable[[], Any] | None = None,
        *,
        shared_bytes: int | Callable[[Config], int] = 0,
        options: Sequence[str] | Callable[[Config], Sequence[str]] = (),
        include: Sequence[str | Path] = (),
        rtol: float | None = None,
        atol: float | None = None,
        check: Callable[[Any, Any], bool] | None = None,
    ) -> None:
        require_packages()
        self.source, self._label, self._directory = read_source(source)
        if not isinstance(function, str) or not function.strip():
            raise UsageError(f"CudaKernel(function={function!r:.80}) must be the name of a kernel in the source")
        self.function, self.args = function.strip(), checked_arguments("CudaKernel", args)
        self.grid, self.block, self.shared_bytes, self.options = grid, block, shared_bytes, options
        self._include = directories(include)
        self._store = ""
        for name, checked in CHECKS.items():
            if not callable(value := getattr(self, name)):
                checked(value)
        one = not isinstance(output, tuple | list)
        compare = checked_comparison("CudaKernel", reference, check, rtol, atol, one)
        arguments = [as_argument(i, value) for i, value in enumerate(self.args)]
        outputs = checked_outputs("CudaKernel", self._as_tensors(output, arguments), arguments, reference)
        self._output = output if one else tuple(output)
        self._program = CudaProgram(arguments, outputs, reference, compare)

    @property
    def clock(self) -> Clock:
        return "cuda"

    def describe(self) -> Description:
        fixed = {name: getattr(self, name) for name in CHECKS}
        facts = [f"function {self.function}"]
        facts += [f"{name}: {CHECKS[name](value)}" for name, value in fixed.items() if not callable(value)]
        facts += aliases(self.args)
        if self._include:
            texts = find_headers(self.source, self._header_directories).texts
            canonical = repr([(name, canonical_c(text)) for name, text in texts])
            facts.append(f"headers: {hashlib.sha256(canonical.encode()).hexdigest()}")
        return Description(
            self.kind,
            functions=(self.options,) if callable(self.options) else (),
            source=self.source,
            directory=self._directory,
            inputs=tuple(f"arg {i}: {described_argument(value)}" for i, value in enumerate(self._program.arguments)),
            facts=tuple(facts),
            launchers=tuple(f for f in (self.grid, self.block, self.shared_bytes) if callable(f)),
        )

    def compile_task(self, config: Config) -> CompileTask:
        launch = Launch(*(self._checked(name, config) for name in ("grid", "block", "shared_bytes")))
        options = (*self._checked("options", config), *checked_options(compiler_arguments(config)))
        return CompileTask(f"{__name__}:Compiler", self._compiler_args, "compile", (self.function, options, launch))

    def program(self) -> CudaProgram:
        return self._program

    def packed(self, by_value: Sequence[Any]) -> bytes:
        return self._program.packed(by_value, dict([array_reducer()]))

    def launch_env(self) -> Mapping[str, str]:
        return {}

    def keep_code_in(self, directory: Path) -> None:
        """Keep what is compiled from now on in ``directory``, for this run and later ones."""
        self._store = str(directory)

    def __call__(self, config: Config, artifact: Any) -> Any:
        with self._program.device():
            self._program.launcher(artifact)()
        return self._output

    @property
    def _header_directories(self) -> list[Path]:
        return [*([Path(self._directory)] if self._directory else []), *self._include]

    @property
    def _compiler_args(self) -> tuple[Any, ...]:
        return self.source, self._label, tuple(map(str, self._header_directories)), self._target, self._store

    @cached_property
    def _target(self) -> Target:
        with self._program.device():
            return current_target()

    def _checked(self, name: str, config: Config) -> Any:
        """The argument ``name``, called where it is callable; raises UsageError where it is not what it must be."""
        value = getattr(self, name)
        return CHECKS[name](evaluated(f"CudaKernel({name}=...)", value, config) if callable(value) else value)

    def _as_tensors(self, output: Any, arguments: Sequence[Any]) -> Any:
        """``output`` with the tensor of each argument in the argument's place."""
        if isinstance(output, tuple | list):
            return [self._as_tensors(item, arguments) for item in output]
        position = next((i for i, value in enumerate(self.args) if value is output), None)
        if position is not None and output is not None:
            return arguments[position]
        return as_argument(0, output) if is_cupy_array(output) else output
