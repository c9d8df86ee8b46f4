"""A kernel that another process has packed, with the compile tasks of some of its configs: what is left of its code."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pytest_kerneltune.backends import CompileTask, Description, Kernel, Program
from pytest_kerneltune.errors import KernelError, KernelTuneError
from pytest_kerneltune.packing import unpack
from pytest_kerneltune.trial import Clock, Config

_WITH_COMPILER_FLAGS = ("c", "cuda")  # kinds whose compiler is told of folders: -Iinclude


@dataclass(frozen=True)
class ExportedKernel:
    """A kernel of some configs, whose source is not here.

    ``data`` are the bytes of its program, ``tasks`` the compile tasks by ``key`` of their config, ``environment`` that
    of its isolated worker. ``description`` names no functions.
    """

    kind: str
    clock: Clock
    isolated: bool
    description: Description
    data: bytes = field(repr=False)
    tasks: Mapping[str, CompileTask | None] = field(repr=False)
    environment: Mapping[str, str]

    @classmethod
    def of(cls, kernel: Kernel, by_value: Sequence[Any], configs: Sequence[Config]) -> ExportedKernel:
        """``kernel`` as it is now, for those of ``configs`` that have code.

        Raises KernelTuneError where it cannot be packed, or the first config has no code.
        """
        what = kernel.describe()
        plain = Description(what.kind, (), what.source, what.directory, what.inputs, what.facts)
        tasks = {key(config): _task(kernel, config) for config in configs[:1]}
        for config in configs[1:]:
            with contextlib.suppress(KernelTuneError):
                tasks[key(config)] = _task(kernel, config)
        data = kernel.packed(by_value)
        return cls(kernel.kind, kernel.clock, kernel.isolated, plain, data, tasks, kernel.launch_env())

    def has(self, config: Config) -> bool:
        """Whether it was exported for ``config``."""
        return key(config) in self.tasks

    def describe(self) -> Description:
        return self.description

    def compile_task(self, config: Config) -> CompileTask | None:
        """The task that came along; raises KernelError where none did."""
        if (known := key(config)) not in self.tasks:
            raise KernelError(f"the older version was not exported with the config {dict(config)}")
        return self.tasks[known]

    def program(self) -> Program:
        """The program, unpacked anew: its functions are its own, whatever modules of their names are here."""
        program: Program = unpack(self.data)
        return program

    def packed(self, by_value: Sequence[Any]) -> bytes:
        return self.data

    def launch_env(self) -> Mapping[str, str]:
        return self.environment

    def __call__(self, config: Config, artifact: Any) -> Any:
        program = self.program()
        launch = program.prepare(config, artifact)
        program.reset()
        return launch()


class InFolder:
    """A compiler whose relative paths begin at ``folder``, the exporting process's working directory."""

    def __init__(self, folder: str, target: str, target_args: tuple[Any, ...]) -> None:
        module, _, name = target.partition(":")
        self._folder = folder
        self._compiler = getattr(import_module(module), name)(*target_args)

    def compile(self, method: str, args: tuple[Any, ...]) -> Any:
        """What ``method(*args)`` of the compiler returns or raises."""
        before = Path.cwd()
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise KernelError(f"the older version was compiled in a folder that is gone: {error}") from None
        try:
            return getattr(self._compiler, method)(*args)
        finally:
            os.chdir(before)


def _task(kernel: Kernel, config: Config) -> CompileTask | None:
    task = kernel.compile_task(config)
    if task is None or kernel.kind not in _WITH_COMPILER_FLAGS:
        return task
    target_args = (str(Path.cwd()), task.target, task.target_args)
    return CompileTask(f"{__name__}:{InFolder.__name__}", target_args, "compile", (task.method, task.args))


def key(config: Config) -> str:
    """Equal for equal configs, whatever the order of their names."""
    return json.dumps(dict(config), sort_keys=True)
