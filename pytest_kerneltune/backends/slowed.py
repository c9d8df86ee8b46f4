"""A kernel slowed on purpose: real work behind each launch, to learn what slowdown a gate notices.

A config's tag (``tagged.py``) is that work in microseconds of the kernel's clock: 0, or no tag, is none. On a GPU even
then a wait is launched that ends at once, because a launch takes more than a microsecond by itself: so two configs
differ by the microseconds between their tags, and by nothing else. Set against the bare kernel both are slower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from math import inf
from typing import Any

from pytest_kerneltune.backends import CompileTask, Description, Kernel, Program
from pytest_kerneltune.backends.tagged import TAG, untagged
from pytest_kerneltune.delay import Delay, delay_on, followed
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.packing import pack, unpack
from pytest_kerneltune.trial import Clock, Config


class SlowedKernel:
    """``kernel``, with work behind each timed launch as the config's tag says; the kernel never sees the tag.

    What differs in the tag only is the same code: such configs are for ``Benchmark.compare``, not for a search.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    @property
    def kind(self) -> str:
        return self._kernel.kind

    @property
    def clock(self) -> Clock:
        return self._kernel.clock

    @property
    def isolated(self) -> bool:
        return self._kernel.isolated

    def describe(self) -> Description:
        return self._kernel.describe()

    def compile_task(self, config: Config) -> CompileTask | None:
        return self._kernel.compile_task(untagged(config)[0])

    def program(self) -> SlowedProgram:
        return SlowedProgram(self._kernel.program(), self.clock)

    def packed(self, by_value: Sequence[Any]) -> bytes:
        return pack(_Packed(self._kernel.packed(by_value), self.clock))

    def launch_env(self) -> Mapping[str, str]:
        return self._kernel.launch_env()

    def __call__(self, config: Config, artifact: Any) -> Any:
        """Not slowed."""
        return self._kernel(untagged(config)[0], artifact)


class SlowedProgram:
    """Launches a SlowedKernel; the work's length is calibrated when it is first needed in a process."""

    def __init__(self, program: Program, clock: Clock) -> None:
        self._program, self._clock = program, clock

    def prepare(self, config: Config, artifact: Any) -> Callable[[], Any]:
        """Raises KernelError for a tag that is no time, or where the GPU cannot be made to wait."""
        config, tag = untagged(config)
        us = _microseconds(tag)
        launch = self._program.prepare(config, artifact)
        return partial(followed, launch, self._delay(us)) if us or self._clock == "cuda" else launch

    def reset(self) -> None:
        self._program.reset()

    def expect(self) -> None:
        self._program.expect()

    def mismatch(self, returned: Any) -> str | None:
        return self._program.mismatch(returned)

    @property
    def reference(self) -> Callable[[], Any] | None:
        return self._program.reference

    @property
    def restores(self) -> bool:
        return self._program.restores

    @cached_property
    def _delay(self) -> Delay:
        try:
            return delay_on(self._clock)
        except RuntimeError as error:
            raise KernelError(f"the kernel cannot be slowed on this GPU: {error}") from error


class _Packed:
    """Is unpickled as a SlowedProgram: the program in it travels as its own kernel packs it."""

    def __init__(self, program: bytes, clock: Clock) -> None:
        self._program, self._clock = program, clock

    def __reduce__(self) -> tuple[Callable[..., SlowedProgram], tuple[bytes, Clock]]:
        return _unpacked, (self._program, self._clock)


def _unpacked(program: bytes, clock: Clock) -> SlowedProgram:
    return SlowedProgram(unpack(program), clock)


def _microseconds(tag: Any) -> float:
    if tag is None:
        return 0.0
    if isinstance(tag, bool) or not isinstance(tag, int | float) or not 0 <= tag < inf:
        raise KernelError(f"the tag {TAG!r} of a slowed kernel's config must be microseconds >= 0, not {tag!r}")
    return float(tag)
