"""Plain Python callables as kernels: called in this process as ``run(**config)``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pytest_kerneltune.backends import CompileTask, Description
from pytest_kerneltune.backends.outputs import kept, mismatch
from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.packing import Reducers, pack, travels_by_value
from pytest_kerneltune.trial import Clock, Config

_DEVICES: dict[str, Clock] = {"cpu": "wall", "cuda": "cuda"}


@dataclass(frozen=True)
class PythonKernel:
    """A callable to tune. It runs in this process: it can't be killed when it hangs, nor survived when it crashes.

    ``run(**config)`` is the kernel; ``reference()`` computes what it must return (floats within ``rtol`` and
    ``atol``, or as ``check(actual, expected)`` says); ``setup()`` runs before every launch, untimed; ``device`` is
    "cpu" (wall clock) or "cuda" (CUDA events on torch's current stream). Raises UsageError on anything else.
    """

    run: Callable[..., Any]
    reference: Callable[[], Any] | None = None
    setup: Callable[[], Any] | None = None
    device: str = "cpu"
    rtol: float | None = None
    atol: float | None = None
    check: Callable[[Any, Any], bool] | None = None

    kind = "python"
    isolated = False

    def __post_init__(self) -> None:
        if not callable(self.run):
            raise UsageError(
                f"a tunable must return a callable or a kernel such as CKernel(...), not {type(self.run).__name__}"
            )
        for name in ("reference", "setup", "check"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise UsageError(f"PythonKernel({name}=...) must be callable, not {value!r}")
        if self.device not in _DEVICES:
            raise UsageError(f"PythonKernel(device={self.device!r}): use one of {', '.join(map(repr, _DEVICES))}")

    @property
    def clock(self) -> Clock:
        return _DEVICES[self.device]

    def describe(self) -> Description:
        functions = tuple(f for f in (self.run, self.setup) if f is not None)
        return Description("python", functions=functions, facts=(f"device {self.device}",))

    def compile_task(self, config: Config) -> CompileTask | None:
        return None

    def program(self) -> PythonProgram:
        return PythonProgram(self)

    def packed(self, by_value: Sequence[Any]) -> bytes:
        return pack(PythonProgram(self), by_value, _reducers())

    def launch_env(self) -> Mapping[str, str]:
        return {}

    def __call__(self, config: Config, artifact: Any) -> Any:
        if self.setup is not None:
            self.setup()
        return self.run(**config)


class PythonProgram:
    """Launches a PythonKernel."""

    def __init__(self, kernel: PythonKernel) -> None:
        self._kernel = kernel
        self._expected: Any = None
        self.reference = kernel.reference
        self.restores = kernel.setup is not None

    def prepare(self, config: Config, artifact: Any) -> Callable[[], Any]:
        return partial(self._kernel.run, **config)

    def reset(self) -> None:
        if self._kernel.setup is not None:
            self._kernel.setup()

    def expect(self) -> None:
        if self.reference is not None:
            self.reset()
            self._expected = kept(self.reference())

    def mismatch(self, returned: Any) -> str | None:
        if self._expected is None:  # no reference, or one that is there to be timed only
            return None
        kernel = self._kernel
        if kernel.check is not None:
            return None if kernel.check(returned, self._expected) else "is wrong: check= returned False"
        return mismatch(returned, self._expected, kernel.rtol, kernel.atol)


def _reducers() -> Reducers:
    """How the JIT functions travel that the callable may launch: by name, or as source where all travels by value."""
    if "triton" not in sys.modules:
        return {}
    from pytest_kerneltune.backends.jit_source import jit_reducers

    return jit_reducers(lambda module: not travels_by_value(sys.modules.get(module)))
