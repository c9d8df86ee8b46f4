"""Triton kernels: compiled ahead of time without a GPU (``jit.py``), launched in an isolated GPU worker.

What only the user's process can evaluate (the grid, ``@triton.heuristics``) is evaluated there once a config, and goes
through the compile worker into the artifact, so that no closure of the user's over other things need travel.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from pytest_kerneltune.backends import CompileTask, Description
from pytest_kerneltune.backends.jit import Compiler as Compiler
from pytest_kerneltune.backends.jit import cache_directory, current_target, jit_reducers, stand_in
from pytest_kerneltune.backends.tensors import Snapshot, mismatch, spoil, storage_bytes, tensor_reducer, tensors_in
from pytest_kerneltune.errors import KernelError, UsageError
from pytest_kerneltune.trial import Clock, Config

_ALIGNED = 16  # bytes; what Triton specialises on


class TritonKernel:
    """A Triton kernel to tune: ``fn[grid](*args, **kwargs, **config)``.

    ``fn`` is a ``@triton.jit`` function, perhaps under ``@triton.heuristics`` (an ``@triton.autotune`` around it is
    taken off, with a warning). A config gives its remaining parameters and compile options such as num_warps.
    ``grid`` is a tuple, or a callable of the mapping of ``kwargs``, config and heuristics, run in this process.
    ``output`` is the tensor (or a list of them) among ``args`` that the kernel writes; ``reference()`` returns what
    must then be in there, within ``atol + rtol * |expected|`` (see ``tensors.mismatch`` for the defaults), or as
    ``check(actual, expected)`` says. Raises UsageError that names the argument.
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
        if not isinstance(args, tuple | list):
            raise UsageError(f"TritonKernel(args=...) must be a tuple of the kernel's arguments, not {args!r:.80}")
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise UsageError(f"TritonKernel(kwargs={kwargs!r:.80}) must be a mapping of the kernel's fixed keywords")
        for name, value in (("reference", reference), ("check", check)):
            if value is not None and not callable(value):
                raise UsageError(f"TritonKernel({name}={value!r:.80}) must be callable")
        for name, tolerance in (("rtol", rtol), ("atol", atol)):
            if tolerance is not None and not (isinstance(tolerance, int | float) and 0 <= tolerance < math.inf):
                raise UsageError(f"TritonKernel({name}={tolerance!r:.80}) must be a number that is not negative")
        self.args, self.kwargs, self.grid = tuple(args), dict(kwargs or {}), grid
        if not callable(grid):
            _launch_grid(grid)
        outputs = self._outputs(output)
        if reference is not None and not outputs:
            raise UsageError("TritonKernel(reference=...) needs output=, the tensor in args that the kernel writes")
        one = not isinstance(output, tuple | list)
        compare = Comparison(rtol, atol, check, one)
        self._program = TritonProgram(self.fn, self.args, self.kwargs, outputs, reference, compare)

    @property
    def clock(self) -> Clock:
        return "cuda"

    def describe(self) -> Description:
        names = dict(enumerate(self.fn.arg_names))
        inputs = [f"arg {i} {names.get(i, '')}: {_described(value)}" for i, value in enumerate(self.args)]
        facts = [f"{name}: {_described(value)}" for name, value in sorted(self.kwargs.items())]
        if not callable(self.grid):
            facts.append(f"grid: {_launch_grid(self.grid)}")
        functions = (self.fn, *self._heuristics.values())
        launchers = (self.grid,) if callable(self.grid) else ()
        return Description(
            self.kind, functions=functions, inputs=tuple(inputs), facts=tuple(facts), launchers=launchers
        )

    def compile_task(self, config: Config) -> CompileTask:
        keywords = self._keywords(config)
        grid = self._grid(keywords)
        return CompileTask(f"{__name__}:Compiler", self._compiler_args, "compile", (keywords, grid))

    def program(self) -> TritonProgram:
        return self._program

    def packed(self, by_value: Sequence[Any]) -> bytes:
        import torch

        from pytest_kerneltune.packing import pack

        chosen = {getattr(module, "__name__", module) for module in by_value} | {"__main__"}
        reducers = jit_reducers(lambda module: module not in chosen) | {torch.Tensor: tensor_reducer()}
        return pack(self._program, by_value, reducers)

    def launch_env(self) -> Mapping[str, str]:
        directory = cache_directory()
        return {"TRITON_CACHE_DIR": directory} if directory else {}

    def __call__(self, config: Config, artifact: Any) -> Any:
        keywords = self._keywords(config)
        with self._device():
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
        with self._device():
            return packed, current_target(), cache_directory()

    def _keywords(self, config: Config) -> dict[str, Any]:
        if twice := sorted(set(self.kwargs) & set(config)):
            raise UsageError(f"TritonKernel(kwargs=...) fixes {', '.join(twice)}, which the space tunes")
        keywords = dict(config)
        named = dict(zip(self.fn.arg_names, self.args, strict=False))
        for name, heuristic in self._heuristics.items():
            keywords[name] = heuristic({**named, **self.kwargs, **keywords})
        return keywords

    def _grid(self, keywords: Mapping[str, Any]) -> tuple[int, ...]:
        if not callable(self.grid):
            return _launch_grid(self.grid)
        try:
            return _launch_grid(self.grid({**self.kwargs, **keywords}))
        except KeyError as error:
            raise UsageError(f"TritonKernel(grid=...) reads {error}, which is not in kwargs or the config") from error

    def _outputs(self, output: Any) -> tuple[Any, ...]:
        outputs = tuple(output) if isinstance(output, tuple | list) else (() if output is None else (output,))
        known = storage_bytes(tensors_in([*self.args, *self.kwargs.values()]))
        for tensor in outputs:
            if not hasattr(tensor, "untyped_storage") or not known.keys() & storage_bytes([tensor]).keys():
                raise UsageError(
                    "TritonKernel(output=...) must be a tensor in args (or a view of one), or a list of them"
                )
        return outputs

    def _device(self) -> Any:
        import torch

        return torch.cuda.device_of(next(tensors_in([*self.args, *self.kwargs.values()]), torch.empty(0)))


class Comparison:
    """How outputs are compared with the reference's; ``one`` says that there is a single output, not a list."""

    def __init__(
        self, rtol: float | None, atol: float | None, check: Callable[[Any, Any], bool] | None, one: bool
    ) -> None:
        self._rtol, self._atol, self._check, self.one = rtol, atol, check, one

    def mismatch(self, actual: Sequence[Any], expected: Sequence[Any]) -> str | None:
        """How the tensors ``actual`` differ from ``expected``; None if they don't."""
        if self._check is not None:
            right = self._check(actual[0], expected[0]) if self.one else self._check(tuple(actual), tuple(expected))
            return None if right else "is wrong: check= returned False"
        for i, (got, want) in enumerate(zip(actual, expected, strict=True)):
            if (text := mismatch(got, want, self._rtol, self._atol)) is not None:
                return text if self.one else f"[{i}] {text}"
        return None


class TritonProgram:
    """Launches a TritonKernel on its arguments, which it brings back to their first content.

    Outputs are filled with wrong values before a launch that is checked, if the kernel overwrites them (which the
    first right config shows): else a config that writes too little would pass where an earlier one wrote before.
    """

    def __init__(
        self,
        fn: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        outputs: tuple[Any, ...],
        reference: Callable[[], Any] | None,
        comparison: Comparison,
    ) -> None:
        self.reference, self.restores = reference, False
        self._fn, self._args, self._kwargs, self._outputs = fn, args, kwargs, outputs
        self._comparison = comparison
        self._expected: list[Any] = []
        self._first: Snapshot | None = None
        self._overwrites: bool | None = None
        self._launch: Callable[[], Any] | None = None

    def prepare(self, config: Config, artifact: Any) -> Callable[[], Any]:
        self._first_content()  # taken before anything is launched
        launcher = self._fn[tuple(artifact["grid"])]
        self._launch = partial(launcher, *self._args, **self._kwargs, **artifact["keywords"])
        return self._launch

    def reset(self) -> None:
        self._first_content().restore()
        if self._overwrites:
            for output, expected in zip(self._outputs, self._expected, strict=True):
                spoil(output, expected)

    def expect(self) -> None:
        if self.reference is None:
            return
        self._first_content().restore()
        found = self.reference()
        values = list(found) if isinstance(found, tuple | list) else [found]
        if found is None or len(values) != len(self._outputs):
            what = "None" if found is None else f"{len(values)} values"
            raise KernelError(f"reference= returned {what} for {len(self._outputs)} output tensors")
        self._expected = [_kept(v, output) for v, output in zip(values, self._outputs, strict=True)]

    def mismatch(self, returned: Any) -> str | None:
        self.restores = self.restores or self._first_content().changed(besides=self._outputs)
        if not self._expected:
            return None
        wrong = self._comparison.mismatch(self._outputs, self._expected)
        if wrong is None and self._overwrites is None and self._launch is not None:
            self._overwrites = self._right_when_spoilt(self._launch)
            self.restores = self.restores or not self._overwrites
        return wrong

    def _right_when_spoilt(self, launch: Callable[[], Any]) -> bool:
        self._overwrites = True
        self.reset()
        launch()
        return self._comparison.mismatch(self._outputs, self._expected) is None

    def _first_content(self) -> Snapshot:
        if self._first is None:
            self._first = Snapshot(self._tensors())
        return self._first

    def _tensors(self) -> list[Any]:
        return list(tensors_in([*self._args, *self._kwargs.values()]))

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        import torch

        self.__dict__.update(state)
        device = next((t.get_device() for t in self._tensors() if t.is_cuda), None)
        if device is not None:  # this is a worker: launches and timer follow the tensors
            torch.cuda.set_device(device)

    def written(self) -> Any:
        """The output tensors as the user gave them: one, a tuple, or None."""
        return (self._outputs[0] if self._outputs else None) if self._comparison.one else self._outputs


def _kept(value: Any, output: Any) -> Any:
    """A copy of what the reference returned, on the output's device."""
    import torch

    return torch.as_tensor(value, device=output.device).detach().clone()


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


def _launch_grid(grid: Any) -> tuple[int, ...]:
    sizes = tuple(grid) if isinstance(grid, tuple | list) else (grid,)
    if not 1 <= len(sizes) <= 3 or not all(hasattr(size, "__index__") and size >= 0 for size in sizes):
        raise UsageError(f"TritonKernel(grid=...): a grid is one to three whole numbers, not {grid!r:.80}")
    return tuple(size.__index__() for size in sizes)


def _described(value: Any) -> str:
    if hasattr(value, "data_ptr") and hasattr(value, "stride"):
        shape, strides = list(value.shape), tuple(value.stride())
        aligned = "" if value.data_ptr() % _ALIGNED else f", {_ALIGNED}-byte aligned"
        return f"{str(value.dtype).removeprefix('torch.')}{shape}, strides {strides}{aligned}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_described, value))})"
    return "None" if value is None else f"{type(value).__name__} {value}"
