"""Helion kernels: Helion generates Triton code, which is compiled ahead and launched as Triton kernels are.

The search space is the one that Helion binds to the kernel's arguments (``helion_space.py``); code is generated in the
user's process, and travels as text (``helion_code.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from importlib import import_module
from typing import Any

from pytest_kerneltune.backends import CompileTask, Description
from pytest_kerneltune.backends.helion_code import HelionCompiler as HelionCompiler
from pytest_kerneltune.backends.helion_code import launches
from pytest_kerneltune.backends.helion_module import generated, imported_modules, loaded
from pytest_kerneltune.backends.helion_space import HelionSpace
from pytest_kerneltune.backends.jit_program import JitProgram
from pytest_kerneltune.backends.tensor_arguments import (
    Comparison,
    checked_arguments,
    checked_comparison,
    checked_outputs,
    described,
    functions_in,
)
from pytest_kerneltune.backends.toolchain import cache_directory, current_target
from pytest_kerneltune.errors import KernelError, UsageError
from pytest_kerneltune.packing import travels_by_value
from pytest_kerneltune.source.arrays import aliases
from pytest_kerneltune.trial import Clock, Config

_REASON_LIMIT = 300
_SETTINGS = ("static_shapes", "index_dtype", "dot_precision", "fast_math")
"""Settings of a Helion kernel that make other code of the same source."""
_SLOW_IMPORT = "torch._inductor.runtime.triton_compat"  # 2 s, on a machine that has just started more than 5 s


class HelionKernel:
    """A Helion kernel to tune: ``kernel(*args)``.

    ``kernel`` is a ``@helion.kernel`` function for its Triton backend. What it may be tuned with is Helion's to say
    (``space``); ``@tunable(space=...)`` narrows that, if given, by parameters of the same names. ``reference()``
    returns what the kernel must return or, with ``output`` (the tensor in ``args`` that the kernel writes, or a list
    of them), what must then be in there; within ``atol + rtol * |expected|`` (see ``tensors.mismatch`` for the
    defaults), or as ``check(actual, expected)`` says. Raises UsageError that names the argument.
    """

    kind = "helion"
    isolated = True

    def __init__(
        self,
        kernel: Any,
        args: Sequence[Any],
        reference: Callable[[], Any] | None = None,
        *,
        output: Any = None,
        rtol: float | None = None,
        atol: float | None = None,
        check: Callable[[Any, Any], bool] | None = None,
    ) -> None:
        self.kernel = _checked_kernel(kernel)
        self.args = checked_arguments("HelionKernel", args)
        compare = checked_comparison("HelionKernel", reference, check, rtol, atol, not isinstance(output, tuple | list))
        outputs = () if output is None else checked_outputs("HelionKernel", output, self.args, reference)
        names = [f"argument {i} ({name})" for i, name in enumerate(self.kernel.signature.parameters)][: len(self.args)]
        self._program = HelionProgram(self.args, outputs, reference, compare, names)

    @property
    def clock(self) -> Clock:
        return "cuda"

    @cached_property
    def bound(self) -> Any:
        """The kernel as Helion binds it to these arguments; raises UsageError where it can't."""
        try:
            return self.kernel.bind(self.args)
        except Exception as error:  # Helion's own errors have no common base
            raise UsageError(
                f"HelionKernel: Helion cannot bind {self.kernel.name} to these args: {_reason(error)}"
            ) from error

    @cached_property
    def space(self) -> HelionSpace:
        """Every config that Helion knows for these arguments."""
        return HelionSpace(self.bound)

    def describe(self) -> Description:
        named = enumerate(zip(self.kernel.signature.parameters, self.args, strict=False))
        inputs = [f"arg {i} {name}: {described(value)}" for i, (name, value) in named]
        facts = [f"{name}: {getattr(self.kernel.settings, name, None)}" for name in _SETTINGS]
        facts += aliases(self.args)
        functions = (self.kernel.fn, *functions_in(self.args))
        return Description(self.kind, functions=functions, inputs=tuple(inputs), facts=tuple(facts))

    def compile_task(self, config: Config) -> CompileTask:
        source = self.source(config)
        for name in imported_modules(source):
            if travels_by_value(sys.modules.get(name)):
                raise KernelError(f"the code that Helion generates reads {name}, where only constants can travel")
        noted = launches(source, self.kernel.name, self.args)
        target = f"{HelionCompiler.__module__}:{HelionCompiler.__name__}"
        return CompileTask(target, self._compiler_args, "compile", (source, self.kernel.name, noted))

    def program(self) -> HelionProgram:
        return self._program

    def packed(self, by_value: Sequence[Any]) -> bytes:
        return self._program.packed_for_launch(by_value)

    def launch_env(self) -> Mapping[str, str]:
        return {}

    def __call__(self, config: Config, artifact: Any) -> Any:
        source = artifact["source"] if artifact else self.source(config)
        with self._program.device():
            returned = getattr(loaded(source), self.kernel.name)(*self.args)
        return self._program.written() if self._program.writes else returned

    @cached_property
    def _compiler_args(self) -> tuple[Any, ...]:
        with self._program.device():
            return current_target(), cache_directory()

    def source(self, config: Config) -> str:
        """The module that Helion generates for ``config``; raises KernelError where it can't."""
        space = self.space
        try:
            return generated(self.bound, space.helion_config(config))
        except Exception as error:  # a config of another space, InvalidConfig, or whatever Helion's generator raises
            raise KernelError(f"Helion generates no code: {_reason(error)}") from error


class HelionProgram(JitProgram):
    """Launches a HelionKernel on its arguments."""

    def __init__(
        self,
        args: tuple[Any, ...],
        outputs: tuple[Any, ...],
        reference: Callable[[], Any] | None,
        comparison: Comparison,
        names: Sequence[str],
    ) -> None:
        super().__init__(args, outputs, reference, comparison, names)
        self.writes = bool(outputs)
        self._args = args

    def expect(self) -> None:
        """As every program does. What generated modules import is there before the time of a config is counted."""
        with suppress(ImportError):
            import_module(_SLOW_IMPORT)
        super().expect()

    def _launcher(self, config: Config, artifact: Any) -> Callable[[], Any]:
        return partial(getattr(loaded(artifact["source"]), artifact["host"]), *self._args)


def _checked_kernel(kernel: Any) -> Any:
    try:
        import helion
    except ImportError as error:
        raise UsageError(f"HelionKernel needs helion: pip install 'pytest-kerneltune[helion]' ({error})") from None
    if not isinstance(kernel, helion.Kernel):
        raise UsageError(f"HelionKernel(kernel={kernel!r:.80}) must be a @helion.kernel function")
    if (backend := getattr(kernel.settings, "backend", "triton")) != "triton":
        raise UsageError(f"HelionKernel: {kernel.name} is for Helion's backend {backend!r}; only 'triton' can be tuned")
    if getattr(getattr(kernel.settings, "ref_mode", None), "name", "OFF") != "OFF":
        raise UsageError("HelionKernel: HELION_INTERPRET is set, so there is nothing to compile: unset it")
    return kernel


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:_REASON_LIMIT]
