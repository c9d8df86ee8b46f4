"""Kinds of kernel: what a tunable may return, one module each.

A kernel object (``PythonKernel``, ``CKernel``, ``TritonKernel``) lives in the user's process and answers three
questions: what it is (``describe``), how one config is compiled (``compile_task``, run in a compile worker), and how
to make the ``Program`` that launches configs. A program lives where the kernel runs: in this process, or in an
isolated worker that unpickled it. Timing, comparing and isolation are not a backend's business (``station.py``,
``benchmark.py``).

To add a kind: write the two classes in a module here, give the kernel class a row in ``KERNELS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from pytest_kerneltune.trial import Clock as Clock
from pytest_kerneltune.trial import Config

KERNELS = {
    "PythonKernel": "pytest_kerneltune.backends.python",
    "CKernel": "pytest_kerneltune.backends.c",
    "TritonKernel": "pytest_kerneltune.backends.triton",
    "HelionKernel": "pytest_kerneltune.backends.helion",
    "CudaKernel": "pytest_kerneltune.backends.cuda",
}
"""Name of a kernel class to the module that holds it."""


@dataclass(frozen=True)
class Description:
    """What a kernel is, for fingerprints and prompts.

    ``functions`` are the Python functions (or JIT functions) whose source, with all that they call, is the kernel;
    ``source`` is its text where it is not Python, ``directory`` where the files it includes are found; ``inputs``
    describes each argument (name, shape, dtype, stride), one line each; ``facts`` are further settings that make a
    different kernel of the same source (flags, function name). ``launchers`` are functions that say how it is launched:
    who reads the source wants to see them, and other ones make another kernel, too.
    """

    kind: str
    functions: tuple[Any, ...] = ()
    source: str = ""
    directory: str = ""
    inputs: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    launchers: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Build:
    """What compiling a config gave: the ``artifact`` that ``Program.prepare`` takes, and what is known of the code.

    ``code`` is a digest of the machine code and of all that decides how it is launched: configs of equal ``code`` do
    the very same ("" where that is not known). ``usage`` and ``demand`` are those of a Trial. ``refused`` says why the
    config cannot be launched on the device ("" where it can); there is no artifact then.
    """

    artifact: Any = None
    code: str = ""
    usage: Mapping[str, int] = field(default_factory=dict)
    demand: float = 0.0
    refused: str = ""


@dataclass(frozen=True)
class CompileTask:
    """One config's compilation: ``method(*args)`` of the object ``target(*target_args)`` in a compile worker.

    ``target`` is "module:Class"; everything is picklable. The method returns a Build, or raises. What it raises of
    ``claims.py`` says that the same code is being compiled for another config, or was given up for one.
    """

    target: str
    target_args: tuple[Any, ...]
    method: str
    args: tuple[Any, ...]


class Program(Protocol):
    """Launches configs of one kernel, where the kernel runs."""

    def prepare(self, config: Config, artifact: Any) -> Callable[[], Any]:
        """A function that launches ``config`` once and returns what the kernel returns."""

    def reset(self) -> None:
        """Give inputs and outputs their first content again (or prepare one launch); not timed."""

    def expect(self) -> None:
        """Run the reference, if there is one, and keep its result."""

    def mismatch(self, returned: Any) -> str | None:
        """How the outputs of the launch that returned ``returned`` differ from the reference's; None if they don't."""

    @property
    def reference(self) -> Callable[[], Any] | None:
        """Runs the reference once; None where there is none."""

    @property
    def restores(self) -> bool:
        """Whether ``reset`` is needed before every launch (the kernel changes its inputs, or the user said so)."""


@runtime_checkable
class Kernel(Protocol):
    """What a tunable returns."""

    @property
    def kind(self) -> str: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def isolated(self) -> bool:
        """Whether it runs in a worker process of its own, which may die without harm."""

    def describe(self) -> Description: ...
    def compile_task(self, config: Config) -> CompileTask | None:
        """How to compile ``config``; None where there is nothing to compile."""

    def program(self) -> Program:
        """The program, to run in this process."""

    def packed(self, by_value: Sequence[Any]) -> bytes:
        """The program as bytes for ``packing.unpack``; functions of the modules in ``by_value`` travel by value."""

    def launch_env(self) -> Mapping[str, str]:
        """Environment of the isolated worker, on top of this process's."""

    def __call__(self, config: Config, artifact: Any) -> Any:
        """Run ``config`` once for the user, outputs in the user's own arrays; returns what the kernel returns."""


def as_kernel(returned: Any) -> Kernel:
    """The kernel a tunable returned: itself, or a PythonKernel around a plain callable.

    Raises UsageError (from PythonKernel) where it is neither.
    """
    if isinstance(returned, Kernel):
        return returned
    kernel: Kernel = import_module(KERNELS["PythonKernel"]).PythonKernel(returned)
    return kernel
