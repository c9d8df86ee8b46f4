"""Triton kernels: compiled ahead of time without a GPU (``jit.py``), launched in an isolated GPU worker.

What only the user's process can evaluate (the grid, ``@triton.heuristics``) is evaluated there once a config, and goes
through the compile worker into the artifact, so that no closure of the user's over other things need travel.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from pytest_kerneltune.backends import CompileTask, Description
from pytest_kerneltune.backends.jit_program import JitProgram
from pytest_kerneltune.backends.jit_source import jit_reducers
from pytest_kerneltune.backends.stand_in import stand_in
from pytest_kerneltune.backends.tensor_arguments import (
    Comparison,
    checked_arguments,
    checked_comparison,
    checked_outputs,
    described,
    evaluated,
    functions_in,
)
from pytest_kerneltune.backends.toolchain import cache_directory, current_target
from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.source.arrays import aliases
from pytest_kerneltune.trial import Clock, Config

_COMPILER = "pytest_kerneltune.backends.jit:Compiler"


class TritonKernel:
    """A Triton kernel to tune: ``fn[grid](*args, **kwargs, **config)``.

    ``fn`` is a ``@triton.jit`` function, perhaps under ``@triton.heuristics`` (an ``@triton.autotune`` around it is
    taken off, with a warning). A config gives its remaining parameters and compile options such as num_warps.
    ``grid`` is a tuple, or a callable of the mapping of all that the kernel is given by name (arguments, config and
    heuristics, defaults), run in this process.
    ``output`` is the tensor (or a list of them) among ``args`` that the kernel writes; ``reference()`` returns what
    must then be in there, within ``atol + rtol * |expected|`` (see ``tensors.mismatch`` for the defaults), or as
    ``check(actual, expected)`` says. What a config may write besides, ``TensorProgram`` says. Raises UsageError that
    names the argument.
    """

    kind = "triton"
    isolated = True

    def __init__(
        self,
        fn: Any,
        args: Sequence[Any],
        grid: Sequence[int] | int | Callable[[Mapping[str, Any]], Any],
        output: Any = None,
        reference: Callable[[], Any] | None = None,
        *,
        kwargs: Mapping[str, Any] | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        check: Callable[[Any, Any], bool] | None = None,
    ) -> None:
        self.fn, self._heuristics = _jit_function(fn)
        self.args = checked_arguments("TritonKernel", args)
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise UsageError(f"TritonKernel(kwargs={kwargs!r:.80}) must be a mapping of the kernel's fixed keywords")
        self.kwargs, self.grid = dict(kwargs or {}), grid
        self._named = _named_arguments(self.fn, self.args, self.kwargs)
        if not callable(grid):
            _launch_grid(grid)
        one = not isinstance(output, tuple | list)
        compare = checked_comparison("TritonKernel", reference, check, rtol, atol, one)
        outputs = checked_outputs("TritonKernel", output, [*self.args, *self.kwargs.values()], reference)
        self._program = TritonProgram(self.fn, self.args, self.kwargs, outputs, reference, compare)

    @property
    def clock(self) -> Clock:
        return "cuda"

    def describe(self) -> Description:
        names = dict(enumerate(self.fn.arg_names))
        inputs = [f"arg {i} {names.get(i, '')}: {described(value)}" for i, value in enumerate(self.args)]
        facts = [f"{name}: {described(value)}" for name, value in sorted(self.kwargs.items())]
        facts += aliases([*self.args, *self.kwargs.values()])
        if not callable(self.grid):
            facts.append(f"grid: {_launch_grid(self.grid)}")
        functions = (self.fn, *self._heuristics.values(), *functions_in([self.args, self.kwargs]))
        launchers = (self.grid,) if callable(self.grid) else ()
        return Description(
            self.kind, functions=functions, inputs=tuple(inputs), facts=tuple(facts), launchers=launchers
        )

    def compile_task(self, config: Config) -> CompileTask:
        keywords = self._keywords(config)
        grid = self._grid(keywords)
        return CompileTask(_COMPILER, self._compiler_args, "compile", (keywords, grid))

    def program(self) -> TritonProgram:
        return self._program

    def packed(self, by_value: Sequence[Any]) -> bytes:
        return self._program.packed_for_launch(by_value)

    def launch_env(self) -> Mapping[str, str]:
        return {}

    def __call__(self, config: Config, artifact: Any) -> Any:
        keywords = self._keywords(config)
        with self._program.device():
            self.fn[self._grid(keywords)](*self.args, **self.kwargs, **keywords)
        return self._program.written()

    @cached_property
    def _compiler_args(self) -> tuple[Any, ...]:
        from pytest_kerneltune.packing import pack

        args = stand_in(self.args)
        kwargs = {name: stand_in(value) for name, value in self.kwargs.items()}
        # By value, so that a compile worker need not import the user's module (which may be slow, or use the GPU).
        own = [m for m in [sys.modules.get(self.fn.__module__)] if m is not None and m.__name__ != "__main__"]
        packed = pack((self.fn, args, kwargs), own, jit_reducers(lambda module: module.partition(".")[0] == "triton"))
        with self._program.device():
            return packed, current_target(), cache_directory()

    def _keywords(self, config: Config) -> dict[str, Any]:
        given = set(self.fn.arg_names[: len(self.args)]) | set(self.kwargs)
        if twice := sorted(given & set(config)):
            raise UsageError(f"TritonKernel: args= or kwargs= fixes {', '.join(twice)}, which the space tunes")
        keywords = dict(config)
        for name, heuristic in self._heuristics.items():
            what = f"TritonKernel: the heuristic of {name}"
            keywords[name] = evaluated(what, heuristic, {**self._named, **keywords})
        if missing := [name for name in self.fn.arg_names if name not in self._named and name not in keywords]:
            kernel, names = self.fn.fn.__name__, ", ".join(missing)
            raise UsageError(f"TritonKernel: {kernel} needs {names}: give it in args=, kwargs= or the space")
        return keywords

    def _grid(self, keywords: Mapping[str, Any]) -> tuple[int, ...]:
        if not callable(self.grid):
            return _launch_grid(self.grid)
        return _launch_grid(evaluated("TritonKernel(grid=...)", self.grid, {**self._named, **keywords}))


class TritonProgram(JitProgram):
    """Launches a TritonKernel on its arguments."""

    def __init__(
        self,
        fn: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        outputs: tuple[Any, ...],
        reference: Callable[[], Any] | None,
        comparison: Comparison,
    ) -> None:
        known = dict(enumerate(getattr(fn, "arg_names", ())))
        names = [f"argument {i} ({known[i]})" if i in known else f"argument {i}" for i in range(len(args))]
        super().__init__([*args, *kwargs.values()], outputs, reference, comparison, [*names, *kwargs])
        self._fn, self._args, self._kwargs = fn, args, kwargs

    def _launcher(self, config: Config, artifact: Any) -> Callable[[], Any]:
        launcher = self._fn[tuple(artifact["grid"])]
        return partial(launcher, *self._args, **self._kwargs, **artifact["keywords"])


def _jit_function(fn: Any) -> tuple[Any, dict[str, Callable[[Mapping[str, Any]], Any]]]:
    """The JIT function inside ``fn``, and the heuristics around it, the outermost first as they run."""
    try:
        from triton.runtime import Autotuner, Heuristics, JITFunction
    except ImportError as error:
        raise UsageError(
            f"TritonKernel needs triton and torch: pip install 'pytest-kerneltune[triton]' ({error})"
        ) from None
    heuristics: dict[str, Any] = {}
    inner, autotuned = fn, False
    while not isinstance(inner, JITFunction):
        if type(inner).__name__ == "InterpretedFunction":
            raise UsageError("TritonKernel(fn=...): TRITON_INTERPRET is set, so there is nothing to compile: unset it")
        if not isinstance(inner, Autotuner | Heuristics):
            raise UsageError(f"TritonKernel(fn={fn!r:.80}) must be a @triton.jit function")
        autotuned = autotuned or isinstance(inner, Autotuner)
        heuristics |= inner.values if isinstance(inner, Heuristics) else {}
        inner = inner.fn
    if autotuned:
        text = f"the @triton.autotune of {inner.__name__} is ignored, since it is tuned here; pass {inner.__name__}.fn"
        warnings.warn(text, stacklevel=3)
    return inner, heuristics


def _named_arguments(fn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What the kernel is given by name where no config gives it: defaults, too. Raises UsageError for too many."""
    parameters = inspect.signature(fn.fn).parameters
    if len(args) > len(parameters):
        raise UsageError(f"TritonKernel(args=...): {fn.fn.__name__} takes {len(parameters)} arguments, not {len(args)}")
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return {**defaults, **dict(zip(parameters, args, strict=False)), **kwargs}


def _launch_grid(grid: Any) -> tuple[int, ...]:
    sizes = tuple(grid) if isinstance(grid, tuple | list) else (grid,)
    if not 1 <= len(sizes) <= 3 or not all(hasattr(size, "__index__") and size >= 0 for size in sizes):
        raise UsageError(f"TritonKernel(grid=...): a grid is one to three whole numbers, not {grid!r:.80}")
    return tuple(size.__index__() for size in sizes)
