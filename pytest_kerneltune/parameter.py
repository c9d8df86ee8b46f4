"""The kinds of tunable parameter, one class each.

A kind knows its values: it samples one, lists the neighbours of one, encodes one as numbers and combines three for
differential evolution. Searches use nothing else, so a new kind needs no change in any search.

The neighbourhood and combination rules follow algorithms used by Helion's autotuner (pytorch/helion), which in turn
adapt pattern search (Hooke & Jeeves, 1961) and differential evolution (Storn & Price, 1997) to discrete values.

Each kind takes ``when=``, which says where it matters (``condition.py``); a third party's kind may go without.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product
from typing import Any, Protocol, TypeVar, runtime_checkable

from pytest_kerneltune.condition import Condition, When, as_condition, token
from pytest_kerneltune.errors import SpaceError

_LISTED = 5040  # values of a composite kind that are still few enough to list

_UNSET: Any = object()
_P = TypeVar("_P", "Choice", "Boolean", "Integer", "PowerOfTwo", "Permutation", "ListOf")


@runtime_checkable
class Parameter(Protocol):
    """One dimension of a search space; where it has an attribute ``when``, that is its condition."""

    @property
    def default(self) -> Any: ...
    @property
    def size(self) -> int:
        """Number of values."""

    @property
    def width(self) -> int:
        """Length of what :meth:`encode` returns."""

    def values(self) -> Sequence[Any] | None:
        """All values in order, or None where there are too many to list."""

    def sample(self, rng: random.Random) -> Any: ...
    def neighbours(self, value: Any, radius: int = 1) -> list[Any]:
        """Other values within ``radius`` steps of ``value``."""

    def encode(self, value: Any) -> list[float]: ...
    def combine(self, base: Any, left: Any, right: Any, rng: random.Random) -> Any:
        """``base`` moved by the difference of ``left`` and ``right``: one slot of a differential-evolution mutant."""

    def canonical(self, value: Any) -> Any:
        """The equal value of this parameter (a JSON list becomes its tuple); raises SpaceError if there is none."""

    def describe(self) -> str:
        """The values in words, for prompts, errors and fingerprints."""


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Choice:
    """One of a fixed list of values that have no order."""

    options: tuple[Any, ...]
    default: Any
    when: Condition = ()

    @property
    def size(self) -> int:
        return len(self.options)

    @property
    def width(self) -> int:
        return len(self.options)

    def values(self) -> Sequence[Any]:
        return self.options

    def sample(self, rng: random.Random) -> Any:
        return rng.choice(self.options)

    def neighbours(self, value: Any, radius: int = 1) -> list[Any]:
        same = token(value)
        return [o for o in self.options if token(o) != same]

    def encode(self, value: Any) -> list[float]:
        same = token(value)
        return [float(token(o) == same) for o in self.options]

    def combine(self, base: Any, left: Any, right: Any, rng: random.Random) -> Any:
        others = [v for v in (left, right) if token(v) != token(base)]
        return base if token(left) == token(right) or not others else rng.choice(others)

    def canonical(self, value: Any) -> Any:
        for option in self.options:
            if token(option) == token(value):
                return option
        raise SpaceError(f"{value!r} is not one of {self.describe()}")

    def describe(self) -> str:
        return "choice of " + ", ".join(repr(o) for o in self.options)


@dataclass(frozen=True)
class Boolean:
    """True or False."""

    default: bool = False
    when: Condition = ()
    size = 2
    width = 1

    def values(self) -> Sequence[bool]:
        return (False, True)

    def sample(self, rng: random.Random) -> bool:
        return rng.random() < 0.5

    def neighbours(self, value: bool, radius: int = 1) -> list[bool]:
        return [not value]

    def encode(self, value: bool) -> list[float]:
        return [float(value)]

    def combine(self, base: bool, left: bool, right: bool, rng: random.Random) -> bool:
        return base if left is right else not base

    def canonical(self, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        raise SpaceError(f"{value!r} is neither True nor False")

    def describe(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class Integer:
    """Every integer from ``low`` to ``high``, both included."""

    low: int
    high: int
    default: int
    when: Condition = ()

    @property
    def size(self) -> int:
        return self.high - self.low + 1

    width = 1

    def values(self) -> Sequence[int]:
        return range(self.low, self.high + 1)

    def sample(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)

    def neighbours(self, value: int, radius: int = 1) -> list[int]:
        return [v for v in range(max(self.low, value - radius), min(self.high, value + radius) + 1) if v != value]

    def encode(self, value: int) -> list[float]:
        return [float(value)]

    def combine(self, base: int, left: int, right: int, rng: random.Random) -> int:
        step = (left > right) - (left < right)
        return min(max(base + step, self.low), self.high)

    def canonical(self, value: Any) -> int:
        if _is_int(value) and self.low <= value <= self.high:
            return int(value)
        raise SpaceError(f"{value!r} is not an {self.describe()}")

    def describe(self) -> str:
        return f"integer from {self.low} to {self.high}"


@dataclass(frozen=True)
class PowerOfTwo:
    """The powers of two from ``low`` to ``high``, both included; distances are counted in exponents."""

    low: int
    high: int
    default: int
    when: Condition = ()

    @property
    def size(self) -> int:
        return self._span.size

    width = 1

    @property
    def _span(self) -> Integer:
        return Integer(_log2(self.low), _log2(self.high), _log2(self.default))

    def values(self) -> Sequence[int]:
        return [1 << e for e in self._span.values()]

    def sample(self, rng: random.Random) -> int:
        return 1 << self._span.sample(rng)

    def neighbours(self, value: int, radius: int = 1) -> list[int]:
        return [1 << e for e in self._span.neighbours(_log2(value), radius)]

    def encode(self, value: int) -> list[float]:
        return [math.log2(value)]

    def combine(self, base: int, left: int, right: int, rng: random.Random) -> int:
        return 1 << self._span.combine(_log2(base), left, right, rng)

    def canonical(self, value: Any) -> int:
        if _is_int(value) and self.low <= value <= self.high and value & (value - 1) == 0:
            return int(value)
        raise SpaceError(f"{value!r} is not a {self.describe()}")

    def describe(self) -> str:
        return f"power of two from {self.low} to {self.high}"


@dataclass(frozen=True)
class Permutation:
    """An order of 0 .. length-1."""

    length: int
    default: tuple[int, ...]
    when: Condition = ()

    @property
    def size(self) -> int:
        return math.factorial(self.length)

    @property
    def width(self) -> int:
        return self.length

    def values(self) -> Sequence[tuple[int, ...]] | None:
        return list(permutations(range(self.length))) if self.size <= _LISTED else None

    def sample(self, rng: random.Random) -> tuple[int, ...]:
        return tuple(rng.sample(range(self.length), self.length))

    def neighbours(self, value: Sequence[int], radius: int = 1) -> list[tuple[int, ...]]:
        swapped = []
        for i, j in combinations(range(self.length), 2):
            order = list(value)
            order[i], order[j] = order[j], order[i]
            swapped.append(tuple(order))
        return swapped

    def encode(self, value: Sequence[int]) -> list[float]:
        return [float(v) for v in value]

    def combine(
        self, base: tuple[int, ...], left: tuple[int, ...], right: tuple[int, ...], rng: random.Random
    ) -> tuple[int, ...]:
        return base if left == right else self.sample(rng)

    def canonical(self, value: Any) -> tuple[int, ...]:
        if isinstance(value, list | tuple) and all(map(_is_int, value)) and sorted(value) == list(range(self.length)):
            return tuple(value)
        raise SpaceError(f"{value!r} is not a {self.describe()}")

    def describe(self) -> str:
        return f"permutation of 0..{self.length - 1}"


@dataclass(frozen=True)
class ListOf:
    """``length`` values of one kind, each on its own; one step changes one element or makes all elements equal."""

    inner: Parameter
    length: int
    default: tuple[Any, ...]
    when: Condition = ()

    @property
    def size(self) -> int:
        return int(self.inner.size**self.length)

    @property
    def width(self) -> int:
        return self.inner.width * self.length

    def values(self) -> Sequence[tuple[Any, ...]] | None:
        inner = self.inner.values() if self.size <= _LISTED else None
        return None if inner is None else list(product(inner, repeat=self.length))

    def sample(self, rng: random.Random) -> tuple[Any, ...]:
        return tuple(self.inner.sample(rng) for _ in range(self.length))

    def neighbours(self, value: Sequence[Any], radius: int = 1) -> list[tuple[Any, ...]]:
        found = {}
        for i, item in enumerate(value):
            for other in self.inner.neighbours(item, radius):
                single = (*value[:i], other, *value[i + 1 :])
                found[token(single)] = single
                uniform = (other,) * self.length
                found[token(uniform)] = uniform
        found.pop(token(tuple(value)), None)
        return list(found.values())

    def encode(self, value: Sequence[Any]) -> list[float]:
        return [number for item in value for number in self.inner.encode(item)]

    def combine(
        self, base: tuple[Any, ...], left: tuple[Any, ...], right: tuple[Any, ...], rng: random.Random
    ) -> tuple[Any, ...]:
        return tuple(self.inner.combine(*items, rng) for items in zip(base, left, right, strict=True))

    def canonical(self, value: Any) -> tuple[Any, ...]:
        if isinstance(value, list | tuple) and len(value) == self.length:
            return tuple(self.inner.canonical(v) for v in value)
        raise SpaceError(f"{value!r} is not a {self.describe()}")

    def describe(self) -> str:
        return f"list of {self.length}, each a {self.inner.describe()}"


def choice(*values: Any, default: Any = _UNSET, when: When | None = None) -> Choice:
    """One of ``values`` (JSON scalars or tuples of them); the default is the first."""
    if not values:
        raise SpaceError("choice() needs at least one value")
    tokens = [token(v) for v in values]
    if len(set(tokens)) != len(tokens):
        raise SpaceError(f"choice{values!r} lists a value twice")
    return _checked(Choice(values, values[0], as_condition(when)), default)


def boolean(*, default: bool = False, when: When | None = None) -> Boolean:
    """True or False."""
    return _checked(Boolean(when=as_condition(when)), default)


def integer(low: int, high: int, *, default: int = _UNSET, when: When | None = None) -> Integer:
    """An integer from ``low`` to ``high``, both included; the default is ``low``."""
    if not (_is_int(low) and _is_int(high)) or low > high:
        raise SpaceError(f"integer({low!r}, {high!r}) needs two integers, low <= high")
    return _checked(Integer(low, high, low, as_condition(when)), default)


def power_of_two(low: int, high: int, *, default: int = _UNSET, when: When | None = None) -> PowerOfTwo:
    """A power of two from ``low`` to ``high``, both included; the default is ``low``."""
    if not (_is_int(low) and _is_int(high)) or not 0 < low <= high or low & (low - 1) or high & (high - 1):
        raise SpaceError(f"power_of_two({low!r}, {high!r}) needs two powers of two, low <= high")
    return _checked(PowerOfTwo(low, high, low, as_condition(when)), default)


def permutation(n: int, *, default: Sequence[int] = _UNSET, when: When | None = None) -> Permutation:
    """An order of 0 .. n-1; the default is the ascending one."""
    if not _is_int(n) or n < 1:
        raise SpaceError(f"permutation({n!r}) needs a positive integer")
    return _checked(Permutation(n, tuple(range(n)), as_condition(when)), default)


def list_of(kind: Parameter, n: int, *, default: Sequence[Any] = _UNSET, when: When | None = None) -> ListOf:
    """``n`` values of ``kind``; the default repeats the kind's own."""
    if not isinstance(kind, Parameter):
        raise SpaceError(f"list_of() needs a parameter such as integer(0, 4), not {kind!r}")
    if getattr(kind, "when", None):
        raise SpaceError("list_of(): its elements have no when= of their own; give it to list_of()")
    if not _is_int(n) or n < 1:
        raise SpaceError(f"list_of(..., {n!r}) needs a positive length")
    return _checked(ListOf(kind, n, (kind.default,) * n, as_condition(when)), default)


def _checked(parameter: _P, default: Any) -> _P:
    if default is _UNSET:
        return parameter
    try:
        return replace(parameter, default=parameter.canonical(default))
    except SpaceError as error:
        raise SpaceError(f"default: {error}") from None


def _log2(value: int) -> int:
    return value.bit_length() - 1
