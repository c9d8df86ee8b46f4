"""C functions called through ctypes, on guarded copies of their arguments."""

from __future__ import annotations

import contextlib
import ctypes
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from pytest_kerneltune.backends import Program
from pytest_kerneltune.backends.outputs import kept, mismatch
from pytest_kerneltune.errors import KernelError, UsageError
from pytest_kerneltune.trial import Config

_GUARD = 4096  # bytes before and after every array that a kernel must not write
_GUARD_BYTE = 0xA5
RETURNS: dict[type | None, Any] = {int: ctypes.c_long, float: ctypes.c_double, None: None}
"""What a function may return, and how ctypes calls that."""


class CProgram:
    """Calls the kernel on guarded copies of the arrays; what those held at first is kept apart from both.

    Inputs must be restored between launches if a launch changes them, and outputs if the kernel reads them (a sort in
    place has nothing left to do the second time), which the first right config shows.
    """

    def __init__(
        self,
        args: Sequence[Any],
        function: str,
        outputs: Sequence[int],
        reference: Callable[[], Any] | None,
        returns: type | None,
        tolerance: tuple[float | None, float | None],
        check: Callable[[Any, Any], bool] | None,
    ) -> None:
        self.args, self.function, self.outputs, self.reference = args, function, outputs, reference
        self.returns, self.restores = returns, False
        self._tolerance, self._check = tolerance, check
        self._first: dict[int, Any] = {}
        self._buffers: dict[int, Any] = {}
        self._copies: list[Any] = []
        self._spoilt_args: list[int] = []
        self._expected: Any = None
        self._launch: Callable[[], Any] | None = None
        self._examined = False
        self._differing: list[int] = []  # shared arrays with other first content in another program

    def prepare(self, config: Config, artifact: Any) -> Callable[[], Any]:
        self._set_up()
        for buffer in self._buffers.values():
            buffer[:_GUARD] = buffer[-_GUARD:] = _GUARD_BYTE
        self._launch = bind(artifact, self.function, self.returns, self._copies)
        return self._launch

    def reset(self) -> None:
        for i, first in self._first.items():
            self._copies[i][...] = first
        self._restore_args()

    def expect(self) -> None:
        self._set_up()
        if self.reference is not None:
            self._expected = kept(self.reference())
            if self._expected is None:
                raise KernelError("reference= returned None: it must return what the kernel must compute")
            self._spoilt_args = [i for i, first in self._first.items() if _differ(self.args[i], first)]
            self._restore_args()
            self.restores = self.restores or any(i not in self.outputs for i in self._spoilt_args)

    def mismatch(self, returned: Any) -> str | None:
        for i, buffer in self._buffers.items():
            if (buffer[:_GUARD] != _GUARD_BYTE).any() or (buffer[-_GUARD:] != _GUARD_BYTE).any():
                return f"reaches outside argument {i}"
        inputs = [i for i in self._first if i not in self.outputs]
        self.restores = self.restores or any(_differ(self._copies[i], self._first[i]) for i in inputs)
        wrong = None if self.reference is None else self._difference(returned)
        if wrong is None and not self._examined and self._launch is not None:
            self._examined = True
            self.restores = self.restores or not self._repeats(self._launch)
        return wrong

    def _difference(self, returned: Any) -> str | None:
        written = self._written() + ([returned] if self.returns else [])
        actual = written[0] if len(written) == 1 else tuple(written)
        if self._check is not None:
            return None if self._check(actual, self._expected) else "is wrong: check= returned False"
        return mismatch(actual, self._expected, *self._tolerance)

    def _repeats(self, launch: Callable[[], Any]) -> bool:
        """Whether outputs come out the same where they held one value all over, and where they held this result.

        (One of their own values, since a kernel in place may take any other for an index or a bound, and crash; the
        result is such a value only where the kernel did not read its outputs the first time.)
        """
        first = [array.copy() for array in self._written()]
        self.reset()
        for array in self._written():
            array[...] = array.flat[0] if array.size else 0
        for _ in range(2):
            launch()
            if mismatch(self._written(), first) is not None:
                return False
        return True

    def _written(self) -> list[Any]:
        return [self._copies[i] for i in self.outputs]

    def _restore_args(self) -> None:
        for i in self._spoilt_args:
            self.args[i][...] = self._first[i]

    def share(self, other: Program) -> bool:
        """See ``pair.Sharing``: done where the arrays of both have the same types and shapes, one by one."""
        if not isinstance(other, CProgram):
            return False
        other._set_up()
        mine, theirs = ([self.args[i] for i in self._places().values()], list(other._first.values()))
        if not mine or [(a.dtype, a.shape) for a in mine] != [(a.dtype, a.shape) for a in theirs]:
            return False
        self._set_up(other._buffers.values())
        other.reset()
        self._differing, other._differing = (_differing(pair) for pair in ((self, other), (other, self)))
        return True

    @property
    def differs(self) -> bool:
        """See ``pair.Sharing``."""
        return bool(self._differing)

    def bring_back(self) -> None:
        """See ``pair.Sharing``; where both versions have an output nothing is written."""
        for i in self._differing:
            self._copies[i][...] = self._first[i]

    def _places(self) -> dict[int, int]:
        """The id of each array to the first place where it is passed."""
        places: dict[int, int] = {}
        for i, value in enumerate(self.args):
            if is_array(value):
                places.setdefault(id(value), i)
        return places

    def _set_up(self, buffers: Iterable[Any] = ()) -> None:
        """Keep the arrays' first content, and make their copies, in ``buffers`` if there are any: one for an array that
        is passed twice."""
        if self._copies:
            return
        place = self._places()
        self._first = {i: self.args[i].copy() for i in place.values()}
        made = list(buffers) or [_guarded(first) for first in self._first.values()]
        self._buffers = dict(zip(self._first, made, strict=True))
        arrays = {i: _inside(self._buffers[i], first) for i, first in self._first.items()}
        self._copies = [arrays[place[id(a)]] if is_array(a) else a for a in self.args]
        self.reset()


def _differing(programs: tuple[CProgram, CProgram]) -> list[int]:
    """Places of the first program's arrays that hold something else than the second's, but for outputs of both."""
    mine, theirs = programs
    pairs = zip(mine._first.items(), theirs._first.items(), strict=True)
    alike = ((i, _differ(a, b), i in mine.outputs and k in theirs.outputs) for (i, a), (k, b) in pairs)
    return [i for i, differs, is_output in alike if differs and not is_output]


def _guarded(array: Any) -> Any:
    """Bytes for a copy of ``array`` at a cache line's start, with room before and after it."""
    import numpy as np

    raw = np.full(array.nbytes + 2 * _GUARD + 64, _GUARD_BYTE, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + array.nbytes + 2 * _GUARD]


def _inside(buffer: Any, array: Any) -> Any:
    return buffer[_GUARD : _GUARD + array.nbytes].view(array.dtype).reshape(array.shape)


def _differ(array: Any, first: Any) -> bool:
    import numpy as np

    return not np.array_equal(_bytes(array), _bytes(first))


def _bytes(array: Any) -> Any:
    import numpy as np

    return array.reshape(-1).view(np.uint8)


def bind(library: bytes, function: str, returns: type | None, args: Sequence[Any]) -> Callable[[], Any]:
    """The library's function as a launch with ``args``; raises KernelError where it is not in there."""
    with tempfile.NamedTemporaryFile(prefix="kerneltune-", suffix=".so") as file:
        file.write(library)
        file.flush()
        try:
            entry = getattr(ctypes.CDLL(file.name), function)
        except (OSError, AttributeError) as error:
            raise KernelError(str(error).replace(file.name, "the compiled library")) from None
    entry.restype = RETURNS[returns]
    values = [_c_value(i, a) for i, a in enumerate(args)]
    launch = partial(entry, *values)
    launch.keep = args  # type: ignore[attr-defined] # ctypes holds addresses only
    return launch


def is_array(value: Any) -> bool:
    """Whether ``value`` is passed as a pointer: a numpy array of at least one dimension."""
    return hasattr(value, "ctypes") and hasattr(value, "shape") and hasattr(value, "tobytes") and value.shape != ()


def describe_argument(position: int, value: Any) -> str:
    """One line on an argument, the same in every process; raises UsageError where C can't be called with it."""
    if is_array(value):
        if value.dtype.hasobject:
            raise UsageError(f"CKernel(args=...): argument {position} is an array of Python objects")
        if not value.flags.c_contiguous:
            raise UsageError(f"CKernel(args=...): argument {position} is not C-contiguous; pass a contiguous copy")
        return f"arg {position}: pointer to {value.dtype}[{', '.join(map(str, value.shape))}]"
    _c_value(position, value)
    content = bytes(value).hex() if isinstance(value, ctypes.Structure) else getattr(value, "value", value)
    return f"arg {position}: {type(value).__name__} {content}"


def _c_value(position: int, value: Any) -> Any:
    if is_array(value):
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, bool | int):
        if ctypes.c_long(value).value != value:
            raise UsageError(f"CKernel(args=...): argument {position} is {value}, more than a C long holds")
        return ctypes.c_long(value)
    if isinstance(value, ctypes._SimpleCData | ctypes.Structure):
        return value
    if hasattr(value, "dtype") and value.shape == ():  # before float: numpy.float64 is one
        from numpy import ctypeslib

        with contextlib.suppress(NotImplementedError):  # half precision, complex numbers, text
            return ctypeslib.as_ctypes_type(value.dtype)(value.item())
    elif isinstance(value, float):
        return ctypes.c_double(value)
    raise UsageError(
        f"CKernel(args=...): argument {position} is a {type(value).__name__}; "
        "pass numpy arrays, numbers, numpy scalars or ctypes values"
    )
