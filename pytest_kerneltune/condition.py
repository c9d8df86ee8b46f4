"""When a parameter matters: the values that other parameters must have for that.

1. A parameter matters where every name of its condition has one of the condition's values. Elsewhere it has its
   default, so that configs which differ only there are one config.
2. Conditions are looked at in an order in which whatever one names comes first. A parameter that itself does not matter
   therefore counts with its default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, Protocol, TypeAlias

from pytest_kerneltune.errors import SpaceError
from pytest_kerneltune.trial import Config

When: TypeAlias = Mapping[str, Any]
"""A condition as users write it: parameter name to the values with which it holds; a scalar stands for one value."""

Condition: TypeAlias = tuple[tuple[str, tuple[Any, ...]], ...]
"""A condition as a value: every name with its values; empty where the parameter always matters."""


class Dimension(Protocol):
    """What conditions ask of a parameter; where it has a ``when`` too, that is its condition."""

    @property
    def default(self) -> Any: ...
    def canonical(self, value: Any) -> Any: ...


def token(value: Any) -> str:
    """Equality as JSON sees it: True and 1 differ, a list equals a tuple. Raises SpaceError for what is no JSON."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        raise SpaceError(
            f"{value!r} cannot be a parameter's value: it must be JSON (number, string, bool, None)"
        ) from None


def as_condition(when: When | None) -> Condition:
    """The condition that ``when`` means; raises SpaceError where it is malformed."""
    if when is None:
        return ()
    if not when or not isinstance(when, Mapping):
        raise SpaceError(f"when={when!r} must map a parameter's name to the values with which the condition holds")
    pairs = tuple((name, _listed(values)) for name, values in when.items())
    for name, values in pairs:
        if not isinstance(name, str):
            raise SpaceError(f"when= names {name!r}: a parameter's name is a string")
        if not values:
            raise SpaceError(f"when= gives no value for {name!r}")
    return pairs


def _listed(values: Any) -> tuple[Any, ...]:
    listed = tuple(values) if isinstance(values, list | tuple) else (values,)
    return tuple({token(value): value for value in listed}.values())


@dataclass(frozen=True)
class _Clause:
    """One name of a condition with its values, as tokens; ``known`` remembers which spellings of a value are one."""

    name: str
    tokens: frozenset[str]
    known: dict[str, bool] = field(default_factory=dict)

    def holds(self, config: Config) -> bool:
        spelling = repr(config[self.name])
        if spelling not in self.known:
            self.known[spelling] = token(config[self.name]) in self.tokens
        return self.known[spelling]


def _clauses(condition: Condition) -> list[_Clause]:
    return [_Clause(name, frozenset(map(token, values))) for name, values in condition]


def _all_hold(clauses: Sequence[_Clause], config: Config) -> bool:
    return all(clause.holds(config) for clause in clauses)


class Conditions:
    """The conditions of the parameters of a space.

    Raises SpaceError naming the parameter whose condition is malformed, names itself or what is no parameter, asks for
    a value that cannot be, or depends on itself by way of others.
    """

    def __init__(self, parameters: Mapping[str, Dimension]) -> None:
        self._values = {name: _checked(name, parameters) for name in parameters}
        graph = {name: [other for other, _ in condition] for name, condition in self._values.items()}
        try:
            order = list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            circle = " -> ".join(reversed(error.args[1]))
            raise SpaceError(f"when= goes round in a circle: {circle}") from None
        self._clauses = {n: _clauses(self._values[n]) for n in order if self._values[n]}
        self._defaults = {name: parameters[name].default for name in self._clauses}
        self.controlling = [name for name in order if any(name in named for named in graph.values())]
        """Names that conditions depend on, each after those that its own condition depends on."""

    def __bool__(self) -> bool:
        return bool(self._clauses)

    def normalised(self, config: Config) -> Config:
        """``config`` with each parameter that does not matter at its default; ``config`` itself without conditions."""
        if not self._clauses:
            return config
        clean = dict(config)
        for name, clauses in self._clauses.items():
            if not _all_hold(clauses, clean):
                clean[name] = self._defaults[name]
        return clean

    def is_idle(self, name: str, config: Config) -> bool:
        """Whether ``name`` does not matter in ``config``, which is normalised as far as this depends on it."""
        return name in self._clauses and not _all_hold(self._clauses[name], config)

    def words(self, name: str, spell: Callable[[Any], str] = repr) -> str:
        """When the parameter ``name`` matters, "mode is 'a' or 'b', and fast is True"; empty where always."""
        clauses = (f"{other} is {' or '.join(map(spell, values))}" for other, values in self._values[name])
        return ", and ".join(clauses)


def _checked(name: str, parameters: Mapping[str, Dimension]) -> Condition:
    """The condition of ``name`` with its values as the parameters spell them."""
    when = getattr(parameters[name], "when", None)
    try:
        condition = when if isinstance(when, tuple) else as_condition(when)  # a third party's may be as users write it
    except SpaceError as error:
        raise SpaceError(f"space[{name!r}]: {error}") from None
    return tuple((other, _possible(name, other, values, parameters)) for other, values in condition)


def _possible(name: str, other: str, values: tuple[Any, ...], parameters: Mapping[str, Dimension]) -> tuple[Any, ...]:
    if other == name:
        raise SpaceError(f"space[{name!r}]: when= names the parameter itself")
    if other not in parameters:
        raise SpaceError(f"space[{name!r}]: when= names {other!r}, which is no parameter of this space")
    try:
        return tuple(parameters[other].canonical(value) for value in values)
    except SpaceError as error:
        raise SpaceError(f"space[{name!r}]: when= asks for what {other} cannot be: {error}") from None
