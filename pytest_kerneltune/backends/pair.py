"""Two versions of a kernel as one: today's, and that of another commit, side by side in one process.

A config tagged ``BASE`` is for the version of the base, any other for today's. Rules:

1. Each version is checked against its own reference, on its own inputs. What is wrong with the base fails the base's
   configs only.
2. Where both lay their tensors out alike they run in the same memory (``shares``): where a tensor happens to lie has a
   part in how long a kernel takes. Each version finds its own first content there whenever its turn comes.
3. Inputs are restored before each launch of both versions where either needs that: one that is launched under other
   conditions than the other could not be compared with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pytest_kerneltune.backends import CompileTask, Description, Kernel, Program
from pytest_kerneltune.backends.tagged import untagged
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.packing import pack, unpack
from pytest_kerneltune.trial import Clock, Config

BASE = "base"
"""The tag of configs of the base's version."""

_TRUTH = {True: "in a worker process", False: "in this process"}


@runtime_checkable
class Sharing(Protocol):
    """A program that may run in the memory of another one."""

    def share(self, other: Program) -> bool:
        """Take the memory of ``other`` for one's own arguments, if their layouts are equal; whether that was done.

        To be called before either program does anything else.
        """

    @property
    def differs(self) -> bool:
        """Whether the first content of that memory is another one than the other program's."""

    def bring_back(self) -> None:
        """Write first content into the memory where the other one's differs; enough after launches that change none."""


@runtime_checkable
class Repairing(Protocol):
    """A program that notices when what it keeps for comparisons is written over."""

    def is_spoilt(self) -> bool:
        """Whether that was written over since the first ``reset`` after ``expect``."""

    def recover(self) -> None:
        """Make all of it anew."""


@dataclass(frozen=True)
class PairKernel:
    """``today`` and ``base`` as one kernel; it is today's in all that is asked of it without a config.

    Raises KernelError where the two are not timed by one clock or in one kind of process.
    """

    today: Kernel
    base: Kernel

    def __post_init__(self) -> None:
        today, base = self.today, self.base
        if today.clock != base.clock:
            raise KernelError(
                f"the kernel is timed by the {today.clock!r} clock, and was by {base.clock!r} at the base"
            )
        if today.isolated != base.isolated:
            ran, runs = _TRUTH[base.isolated], _TRUTH[today.isolated]
            raise KernelError(f"the kernel runs {runs}, and ran {ran} at the base")
        if (env := dict(today.launch_env())) != (former := dict(base.launch_env())):
            raise KernelError(
                f"the kernel's process is given the environment {env}, and was given {former} at the base"
            )

    @property
    def kind(self) -> str:
        return self.today.kind

    @property
    def clock(self) -> Clock:
        return self.today.clock

    @property
    def isolated(self) -> bool:
        return self.today.isolated

    def describe(self) -> Description:
        return self.today.describe()

    def compile_task(self, config: Config) -> CompileTask | None:
        plain, tag = untagged(config)
        return self._version(tag).compile_task(plain)

    def program(self) -> PairProgram:
        return paired(self.today.program, self.base.program)

    def packed(self, by_value: Sequence[Any]) -> bytes:
        return pack(_Parcel(self.today.packed(by_value), self.base.packed(by_value)))

    def launch_env(self) -> Mapping[str, str]:
        return self.today.launch_env()

    @property
    def is_called_alike(self) -> bool:
        """Whether both versions get arguments of the same description, in the same way: where that is so, configs of
        equal compiled code (``Build.code``) do the very same."""
        today, base = self.today.describe(), self.base.describe()
        return (today.kind, today.inputs, today.facts) == (base.kind, base.inputs, base.facts)

    @property
    def shares_inputs(self) -> bool:
        """Whether it makes no difference where the tensors of the two lie: in a worker they run in the same memory
        where their layouts allow it, and on the host the gate allows for it anyway."""
        return self.isolated or self.clock != "cuda"

    def __call__(self, config: Config, artifact: Any) -> Any:
        plain, tag = untagged(config)
        return self._version(tag)(plain, artifact)

    def _version(self, tag: Any) -> Kernel:
        return self.base if tag == BASE else self.today


class PairProgram:
    """Launches two versions of a kernel, one at a time: whose turn it is, ``take_turn`` and ``prepare`` are told.

    ``failure`` says in words why the base's version cannot be run ("": it can); its configs then raise a KernelError.
    """

    def __init__(self, today: Program, base: Program | None, failure: str = "") -> None:
        self._today, self._base, self._failure = today, base, failure
        self._current, self._is_checking = today, True
        self.shares = isinstance(base, Sharing) and base.share(today)

    @property
    def reference(self) -> Callable[[], Any] | None:
        """Today's."""
        return self._today.reference

    @property
    def restores(self) -> bool:
        return any(program.restores for program in self._programs)

    @property
    def rewrites(self) -> bool:
        """Whether the memory of both must be written when the turn changes."""
        return self.shares and any(isinstance(p, Sharing) and p.differs for p in self._programs)

    def prepare(self, config: Config, artifact: Any) -> Callable[[], Any]:
        self.take_turn(config)
        self._is_checking = True  # perhaps; and nobody knows what an unchecked config writes
        return self._current.prepare(untagged(config)[0], artifact)

    def take_turn(self, config: Config) -> None:
        """Have the inputs be those of the version that ``config`` is for; what follows is about that one."""
        self._take(self._working_base if untagged(config)[1] == BASE else self._today)

    def reset(self) -> None:
        self._current.reset()

    def expect(self) -> None:
        if self._base is not None and not self._failure:
            self._take(self._base)
            try:
                self._base.expect()
            except Exception as error:  # whatever the user's function raises
                self._failure = f"the base's reference failed: {type(error).__name__}: {error}"
        self._take(self._today)
        self._today.expect()  # the last one, so that the process is as its reference, which is timed, needs it
        for program in reversed(self._programs):
            if isinstance(program, Repairing):
                program.reset()  # from now on it is noticed, whichever version is launched first

    def mismatch(self, returned: Any) -> str | None:
        wrong = self._current.mismatch(returned)
        for other in self._programs:
            if other is not self._current and isinstance(other, Repairing) and other.is_spoilt():
                other.recover()
                self._current.reset()
                wrong = wrong or "overwrites memory far from its arguments"
        return wrong

    @property
    def _programs(self) -> list[Program]:
        return [self._today] if self._base is None or self._failure else [self._today, self._base]

    @property
    def _working_base(self) -> Program:
        if self._base is None or self._failure:
            raise KernelError(self._failure)
        return self._base

    def _take(self, program: Program) -> None:
        if program is not self._current:
            self._current = program
            self._bring_back()

    def _bring_back(self) -> None:
        is_checking, self._is_checking = self._is_checking, False
        if self.shares and isinstance(self._current, Sharing):
            (self._current.reset if is_checking else self._current.bring_back)()


def paired(today: Callable[[], Program], base: Callable[[], Program]) -> PairProgram:
    """The program of both versions, each of which a function makes.

    Where today's cannot be made, what it raises is raised here; where the base's cannot, its configs fail.
    """
    made = today()
    try:
        with _path_kept():
            return PairProgram(made, base())
    except Exception as error:  # of another commit, or of another tree: it may raise anything
        return PairProgram(made, None, f"the base's kernel cannot be loaded: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class _Parcel:
    """Both programs as bytes; is unpacked as their PairProgram."""

    today: bytes
    base: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self.today, self.base)


def _unpacked(today: bytes, base: bytes) -> PairProgram:
    return paired(lambda: unpack(today), lambda: unpack(base))


@contextmanager
def _path_kept() -> Iterator[None]:
    """Have modules that the body makes importable come behind those that already are: today's names stay today's."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = [*before, *(entry for entry in sys.path if entry not in before)]
