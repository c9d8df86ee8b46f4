"""Live values in words that are equal for equal values, in every process and on every machine.

No code of the user's runs for it: of their own classes neither ``__repr__`` nor ``__str__``, ``__hash__``, ``__eq__``,
``__iter__`` or ``__reduce__`` is called, since such may show an address, or fail.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import islice
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from pytest_kerneltune.source.arrays import array_layout
from pytest_kerneltune.source.introspection import (
    MAPPINGS,
    SCALARS,
    SEQUENCES,
    attributes,
    class_methods,
    defined_in,
    described,
    is_fixture_request,
    is_library,
    is_named,
    is_numeric,
    library_name,
    module_file,
    module_name,
    tried,
    unwrapped,
)
from pytest_kerneltune.source.portable import portable

MISSING = object()
"""What a name stands for that nothing binds."""

_ITEM_LIMIT = 256  # items of a container spelled out one by one
_NESTED_LIMIT = 16  # items of a container inside another, past which it is a unit of its own
_DEPTH_LIMIT = 8
_MANY_BITS = 2048
_ADDRESS = 2**32  # what is below is no address of an allocation
_PLAIN_VALUES = frozenset(
    ("_collections", "_operator", "array", "collections", "datetime", "decimal", "fractions", "operator", "re")
)
"""Modules of the standard library whose objects are values, which ``__reduce_ex__`` takes apart."""
_NETWORK = "torch.nn.modules.module"
_NETWORK_PARTS = frozenset(("_buffers", "_modules", "_parameters"))


class Token(str):
    """What a value is, already in words."""

    __slots__ = ()


class Values:
    """Says what values are; ``#3`` in a token is the fourth thing that ``refer`` was given.

    ``is_own(module, file)`` says whether code is followed. With ``thorough``, arrays count with their layout, and
    containers and values of the standard library with all that is in them. ``hidden`` counts the values met so far of
    which a token tells the type and not the content; ``folder`` is that of the file whose values are at hand.
    """

    def __init__(self, refer: Callable[[Any], str], is_own: Callable[[str, str], bool], thorough: bool) -> None:
        self._refer, self._is_own, self._thorough = refer, is_own, thorough
        self.hidden = 0
        self.changed: set[tuple[int, str]] = set()
        """What the kernel itself changes: (id of the holder, name) of a variable, (id, "") of a container."""
        self.folder = ""
        self.takes_addresses = False
        """Whether large integers of the file at hand may be addresses, which differ from process to process."""

    def token(self, value: Any, depth: int = 0) -> str:
        """``value`` in words; those of its type where something of the user's fails that had to be asked."""
        if type(value) is Token:
            return value
        before = self.hidden
        words = tried(self._token, value, depth, otherwise="")
        self.hidden = self.hidden if words else before + 1
        return words or f"unreadable {type.__getattribute__(type(value), '__qualname__')}"

    def _token(self, value: Any, depth: int) -> str:
        if value is None or value is ... or value is MISSING:
            return "unbound" if value is MISSING else str(value)
        kind = type(value)
        for scalar in SCALARS:
            if issubclass(kind, scalar):
                return self._scalar(value, scalar) + self._class(value, depth)
        for container in MAPPINGS + SEQUENCES:
            if issubclass(kind, container):
                return self._container(value, container, depth) + self._class(value, depth)
        return self._code(value, depth) or self._object(value, depth)

    def _scalar(self, value: Any, scalar: Any) -> str:
        if scalar is str:
            return f"{type(value).__qualname__} {portable(str.__str__(value), self.folder, self._thorough)!a}"
        if scalar is bytes and self._thorough:
            text = portable(bytes.decode(value, "latin-1"), self.folder, self._thorough)
            return f"{type(value).__qualname__} {text.encode('latin-1')!a}"
        if scalar is int and int.bit_length(value) > _MANY_BITS:
            return f"{type(value).__qualname__} {int.__format__(value, 'x')}"  # Python limits the decimal digits
        if self._thorough and self.takes_addresses and scalar is int and int.__ge__(value, _ADDRESS):
            return "int that may be an address"
        return f"{type(value).__qualname__} {scalar.__repr__(value)}"

    def _class(self, value: Any, depth: int) -> str:
        """What the user's own subclass of a plain type adds: its methods and the attributes of ``value``."""
        kind = type(value)
        if not self._thorough or kind.__module__ == "builtins":
            return ""
        if kind is defaultdict:
            return f" else {self.token(value.default_factory, depth + 1)}"
        if is_library(*defined_in(kind)):
            return ""
        own = {} if issubclass(kind, Enum) else attributes(value)
        kept = f" with {self._pairs(own, depth + 1)}" if own else ""
        return kept + (f" of {self._refer(kind)}" if class_methods(kind) else "")

    def _container(self, value: Any, base: Any, depth: int) -> str:
        if (id(value), "") in self.changed:
            self.hidden += 1
            return f"{type(value).__qualname__} that changes"
        size = base.__len__(value)
        kind = f"{type(value).__qualname__} of {size}"
        if depth > _DEPTH_LIMIT or (self._thorough and depth and size > _NESTED_LIMIT):
            return self._unit(value, kind) if self._thorough else kind
        if base in (set, frozenset):
            return f"{kind} {self._unordered(value, base, depth)}"
        if base in MAPPINGS:
            items: Iterator[Any] = iter(base.items(value))
            tokens = [self._pair(item[0], item[1], depth + 1) for item in islice(items, _ITEM_LIMIT)]
        else:
            items = base.__iter__(value)
            tokens = [self.token(item, depth + 1) for item in islice(items, _ITEM_LIMIT)]
        rest = f" and {self._rest(list(items))}" if self._thorough and size > _ITEM_LIMIT else ""
        return f"{kind} [{', '.join(tokens)}]{rest}"

    def _pair(self, key: Any, value: Any, depth: int) -> str:
        if depth > _DEPTH_LIMIT and not self._thorough:
            return "tuple of 2"
        return f"tuple of 2 [{self.token(key, depth + 1)}, {self.token(value, depth + 1)}]"

    def _pairs(self, values: Mapping[str, Any], depth: int) -> str:
        pairs = [self._pair(name, values[name], depth) for name in sorted(values, key=str)]
        return f"dict of {len(pairs)} [{', '.join(pairs)}]"

    def _unit(self, value: Any, kind: str) -> str:
        """``value`` as a unit of its own: so that cycles end, and what many share is told once."""
        self.hidden += 1
        return f"{kind} {self._refer(value)}"

    def _unordered(self, value: Any, base: Any, depth: int) -> list[str]:
        """The items of a set, which has no order of its own: to number units as they come would make one up."""
        items = list(base.__iter__(value))
        if not self._thorough:
            return sorted(ascii(v) if type(v) in SCALARS else type(v).__qualname__ for v in items)
        if all(type(v) in SCALARS for v in items):
            return sorted(map(self.token, items))
        return [self.token(item, depth + 1) for item in sorted(items, key=_rank)]

    def _rest(self, items: Sequence[Any]) -> str:
        if all(type(item) in (bool, int, float) for item in items):
            text = ascii(items)
        else:
            pairs = (
                self._pair(item[0], item[1], 1) if type(item) is tuple and len(item) == 2 else "" for item in items
            )
            text = "\n".join(pair or self.token(item, 1) for pair, item in zip(pairs, items, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()

    def _code(self, value: Any, depth: int) -> str:
        kind = type(value)
        if issubclass(kind, ModuleType):
            name = module_name(value)
            return self._refer(value) if self._is_own(name, module_file(value)) else f"library {name}"
        if kind is MethodType:
            return f"method {self.token(value.__func__)} of {self.token(value.__self__, depth + 1)}"
        if kind is BuiltinFunctionType and not issubclass(type(value.__self__), ModuleType | None):
            return f"method {value.__name__} of {self.token(value.__self__, depth + 1)}"
        if issubclass(kind, functools.partial):
            return self._unit(value, "partial") if self._thorough and depth else self._partial(value, depth + 2)
        if not issubclass(kind, FunctionType | type):
            return ""
        if self._is_own(*defined_in(value)):
            return self._refer(value)
        inner = unwrapped(value)
        if inner is value:
            self.hidden += not is_named(value)
            return library_name(value)
        self.hidden += 1
        others = vars(value).get("registry") if self._thorough else None  # of functools.singledispatch
        return f"wrapper of {self.token(inner, depth + 1)}" + (f" or {self.token(others, depth + 1)}" if others else "")

    def _partial(self, value: Any, depth: int) -> str:
        given = self._pairs(value.keywords, depth + 1)
        return f"partial tuple of 3 [{self.token(value.func, depth)}, {self.token(value.args, depth)}, {given}]"

    def _object(self, value: Any, depth: int) -> str:
        kind = type(value)
        if issubclass(kind, Enum):
            words = f"{kind.__qualname__}.{value._name_} {self.token(value._value_, depth + 1)}"
            return words + self._class(value, depth)
        if not is_library(*defined_in(kind)):
            self.hidden += 1
            return self._refer(value)
        if kind is range:
            return ascii(value)
        if kind is slice:
            return f"slice {', '.join(self.token(v, depth + 1) for v in (value.start, value.stop, value.step))}"
        if kind is SimpleNamespace:
            return self.token({n: v for n, v in vars(value).items() if (id(value), n) not in self.changed}, depth + 1)
        if is_fixture_request(value):
            return f"request {self.token(getattr(value, 'param', None), depth + 1)}"
        if kind.__name__ == "constexpr":
            return f"constexpr {self.token(value.value, depth + 1)}"
        return self._plain(value, depth) or self._library_object(value, depth)

    def _plain(self, value: Any, depth: int) -> str:
        """A value of the standard library by what it is made of; "" for everything else."""
        kind = type(value)
        if not self._thorough:
            return ""
        if issubclass(kind, PurePath):
            return f"{kind.__qualname__} {portable(str(value), self.folder, self._thorough)!a}"
        if kind is bytearray:
            return f"bytearray {bytes(value)!a}"
        if kind.__module__.partition(".")[0] not in _PLAIN_VALUES:
            return ""
        if depth:
            return self._unit(value, kind.__qualname__)
        try:
            reduced = copyreg.dispatch_table[kind](value) if kind in copyreg.dispatch_table else value.__reduce_ex__(2)
        except TypeError:  # a match, an array's iterator: nothing that can be taken apart
            return ""
        parts: list[Any] = [list(part) if isinstance(part, Iterator) else part for part in reduced]
        return f"{kind.__qualname__} made of {self.token(tuple(parts), depth + 1)}"

    def _library_object(self, value: Any, depth: int) -> str:
        inner = unwrapped(value)
        words = described(value)
        if not words and inner is not value:
            self.hidden += 1  # how it was wrapped: with options of a compiler's, say
            return f"{type(value).__qualname__} of {self.token(inner, depth + 1)}"
        if not is_numeric(value) and not isinstance(getattr(value, "__name__", None), str):
            self.hidden += 1
        if self._thorough and any(c.__name__ == "Module" and c.__module__ == _NETWORK for c in type(value).__mro__):
            if depth:
                return self._unit(value, "network")
            held = {n: v for n, v in attributes(value).items() if n[:1] != "_" or n in _NETWORK_PARTS}
            return f"{library_name(type(value))} {self._pairs(held, depth + 1)}"
        return (words + (array_layout(value) if self._thorough else "")) or library_name(value)


def _rank(item: Any) -> tuple[str, str, int]:
    """Where an item of a set stands among the others, as far as that is the same in every process."""
    kind = type(item)
    if issubclass(kind, Enum):
        return kind.__qualname__, item._name_, 0
    if issubclass(kind, SCALARS):
        return kind.__qualname__, next(s for s in SCALARS if issubclass(kind, s)).__repr__(item), 0
    if issubclass(kind, tuple | frozenset):
        items: Iterable[Any] = item if issubclass(kind, tuple) else sorted(item, key=_rank)
        return kind.__qualname__, "\n".join(map(str, map(_rank, items))), 0
    inner = unwrapped(item)
    line = inner.__code__.co_firstlineno if isinstance(inner, FunctionType) else 0
    return kind.__qualname__, str(getattr(inner, "__qualname__", "")), line
