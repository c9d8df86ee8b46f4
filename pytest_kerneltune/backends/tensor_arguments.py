"""What users give to kernels on torch tensors: checked, described, and how outputs are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

from pytest_kerneltune.backends.tensors import mismatch, storage_bytes, tensors_in
from pytest_kerneltune.errors import KernelError, UsageError
from pytest_kerneltune.source.arrays import ALIGNED
from pytest_kerneltune.source.introspection import attributes, tried

_SEPARATORS = frozenset(",(){}:\n")


@dataclass(frozen=True)
class Comparison:
    """How outputs are compared with the reference's; ``one`` says that there is a single output, not a list."""

    rtol: float | None
    atol: float | None
    check: Callable[[Any, Any], bool] | None
    one: bool

    def mismatch(self, actual: Sequence[Any], expected: Sequence[Any]) -> str | None:
        """How the tensors ``actual`` differ from ``expected``; None if they don't."""
        if self.check is not None:
            expected = [tensor.clone() for tensor in expected]  # which are kept, whatever it does to them
            right = self.check(actual[0], expected[0]) if self.one else self.check(tuple(actual), tuple(expected))
            return None if right else "is wrong: check= returned False"
        for i, (got, want) in enumerate(zip(actual, expected, strict=True)):
            if (text := mismatch(got, want, self.rtol, self.atol)) is not None:
                return text if self.one else f"[{i}] {text}"
        return None


def checked_arguments(kind: str, args: Any, name: str = "args") -> tuple[Any, ...]:
    """``args`` as a tuple.

    Raises UsageError that names the kernel class ``kind`` where it is no tuple or list, or holds arrays of the host.
    """
    if not isinstance(args, tuple | list):
        raise UsageError(f"{kind}({name}=...) must be a tuple of the kernel's arguments, not a {type(args).__name__}")
    for i, value in enumerate(args):
        if hasattr(value, "__array_interface__") and getattr(value, "shape", ()) != ():
            raise UsageError(f"{kind}({name}=...): argument {i} is a numpy array in host memory: pass a CUDA tensor")
    return tuple(args)


def evaluated(what: str, function: Callable[[Mapping[str, Any]], Any], values: Mapping[str, Any]) -> Any:
    """What ``function``, which is the user's and called ``what`` in messages, makes of the named ``values``.

    Raises UsageError where it reads a name that they lack, KernelError where it raises anything else: then it is this
    config that cannot be launched.
    """
    try:
        return function(values)
    except KeyError as error:
        raise UsageError(f"{what} reads {error}, which is not among what it is given: {', '.join(values)}") from error
    except Exception as error:  # whatever the user's function raises
        raise KernelError(f"{what} raised {type(error).__name__}: {error}") from error


def checked_comparison(
    kind: str, reference: Any, check: Any, rtol: Any = None, atol: Any = None, one: bool = True
) -> Comparison:
    """A Comparison; raises UsageError that names the kernel class ``kind`` and the argument that is wrong."""
    for name, value in (("reference", reference), ("check", check)):
        if value is not None and not callable(value):
            raise UsageError(f"{kind}({name}={value!r:.80}) must be callable")
    if check is not None and reference is None:
        raise UsageError(f"{kind}(check=...) needs reference=, which returns what check is given as expected")
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if tolerance is not None and not (isinstance(tolerance, int | float) and 0 <= tolerance < math.inf):
            raise UsageError(f"{kind}({name}={tolerance!r:.80}) must be a number that is not negative")
    return Comparison(rtol, atol, check, one)


def checked_outputs(kind: str, output: Any, arguments: Sequence[Any], reference: Any) -> tuple[Any, ...]:
    """The tensors of ``output`` (one, a list or None) as a tuple.

    Raises UsageError that names the kernel class ``kind`` where one is not behind ``arguments``, or where there is none
    for ``reference`` to be compared with.
    """
    outputs = tuple(output) if isinstance(output, tuple | list) else (() if output is None else (output,))
    known = storage_bytes(tensors_in(arguments))
    for tensor in outputs:
        if not hasattr(tensor, "untyped_storage") or not known.keys() & storage_bytes([tensor]).keys():
            raise UsageError(f"{kind}(output=...) must be a tensor in args (or a view of one), or a list of them")
    if reference is not None and not outputs:
        raise UsageError(f"{kind}(reference=...) needs output=, the tensor in args that the kernel writes")
    return outputs


def described(value: Any) -> str:
    """An argument in words, for fingerprints, the same in every process.

    A tensor's are its type, shape, strides and alignment, a function's its name (``functions_in`` finds what it does),
    another's its value; those of its type where it does not say so much.
    """
    return str(tried(_described, value, otherwise=f"{type(value).__name__} that cannot be described"))


def _described(value: Any) -> str:
    if hasattr(value, "data_ptr") and hasattr(value, "stride"):
        shape, strides = list(value.shape), tuple(value.stride())
        aligned = "" if value.data_ptr() % ALIGNED else f", {ALIGNED}-byte aligned"
        return f"{str(value.dtype).removeprefix('torch.')}{shape}, strides {strides}{aligned}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(described, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {described(item)}' for name, item in value.items())}}}"
    if hasattr(getattr(value, "base", None), "data_ptr"):
        return f"{type(value).__name__}{described(vars(value))}"
    if _is_function(value):
        return f"{type(value).__name__} {getattr(value, 'fn', value).__qualname__}"
    if isinstance(value, BuiltinFunctionType):
        return f"{type(value).__name__} {value.__qualname__}"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__} {{{', '.join(sorted(map(described, value)))}}}"
    if isinstance(value, partial):
        return f"partial {described(value.func)} {described(value.args)} {described(value.keywords)}"
    if type(value).__name__ == "device":
        return f"device {str(value).partition(':')[0]}"  # a second GPU of one kind is the same device
    if isinstance(value, str) and _SEPARATORS.intersection(value):
        return f"str {value!r}"  # so that no string reads as two arguments
    kind: Any = type(value)
    if is_dataclass(value) or (kind.__repr__ is object.__repr__ and kind.__str__ is object.__str__):
        return f"{type(value).__name__}{described(attributes(value))}"  # whose own words would be its address
    return "None" if value is None else f"{type(value).__name__} {value}"


def functions_in(arguments: Any) -> tuple[Any, ...]:
    """The functions among ``arguments``, JIT functions too: what they do is a part of the kernel that calls them."""
    if isinstance(arguments, Mapping):
        return functions_in(list(arguments.values()))
    if isinstance(arguments, tuple | list):
        return tuple(function for argument in arguments for function in functions_in(argument))
    if isinstance(arguments, partial):
        return functions_in([arguments.func, arguments.args, arguments.keywords])
    return (arguments,) if tried(_is_function, arguments, otherwise=False) else ()


def _is_function(value: Any) -> bool:
    return isinstance(getattr(value, "fn", value), FunctionType)
