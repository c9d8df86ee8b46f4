"""Reading a language model's reply: text in, configs of the space out.

A reply should be one JSON object ``{"analysis": "...", "configs": [{...}, ...]}``; ``extract.py`` finds the objects in
whatever came instead. Here they are fitted to the space: completed from its default, repaired where only one reading is
possible, made canonical, and dropped with a reason where nothing helps. Nothing in a reply is ever executed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pytest_kerneltune.errors import SpaceError
from pytest_kerneltune.parameter import Boolean, Choice, Integer, ListOf, Parameter, Permutation, PowerOfTwo
from pytest_kerneltune.search.extract import extract_objects
from pytest_kerneltune.search.scanner import NOT_A_NUMBER, literal
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

MAX_CHARACTERS = 1 << 18
"""A longer reply is read up to here."""

_MAX_CONFIGS = 1000
_MAX_REASONS = 12
_MALFORMED = "malformed or cut off"
_REMARKED_NUMBER = re.compile(r"([-+]?\d+(?:\.\d+)?)\s*(?:[^\W\d]+|(?:#|//|/\*|\().*)", re.DOTALL)


@dataclass(frozen=True)
class Reply:
    """The configs of a reply: valid, complete, canonical and distinct, in the order proposed.

    ``proposed`` counts the objects that were meant as configs; ``dropped`` maps a reason to how often something was
    dropped for it: a whole config, or a name that the space does not have.
    """

    configs: tuple[Config, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    proposed: int = 0


def parse_reply(text: str, space: ConfigSpace) -> Reply:
    """Read a language model's reply; whatever the text, this returns and does not raise.

    A config may leave out parameters (their default is taken). Values are repaired where only one reading is possible:
    numbers and truth values in quotes, with a unit or remark behind them, 4.0 for 4, a list of one element for the
    element and the reverse, numbers off the grid of an integer or power of two, names in the wrong case. What does not
    fit a parameter that does not matter in its config does no harm. Everything else is dropped and counted.
    """
    raw, malformed = extract_objects(text[:MAX_CHARACTERS], set(space.parameters))
    dropped: Counter[str] = Counter({_MALFORMED: malformed} if malformed else {})
    configs: dict[str, Config] = {}
    for values in raw[:_MAX_CONFIGS]:
        config = fitted_config(values, space, dropped)
        if config is None:
            continue
        key = space.key(config)
        if key in configs:
            dropped["duplicate"] += 1
        configs.setdefault(key, config)
    if len(raw) > _MAX_CONFIGS:
        dropped[f"beyond the first {_MAX_CONFIGS}"] = len(raw) - _MAX_CONFIGS
    return Reply(tuple(configs.values()), _summary(dropped), len(raw) + malformed)


def reply_schema(space: ConfigSpace) -> dict[str, Any] | None:
    """A JSON schema of a reply for ``space``, in the subset that providers enforce (every key required, no others).

    Reasoning comes first, so that a model which writes in order can still use it; it may be empty. None where a
    parameter's values cannot be written in the subset.
    """
    properties = {name: _value_schema(parameter) for name, parameter in space.parameters.items()}
    if None in properties.values():
        return None
    configs = {"type": "array", "items": _object_schema(properties)}
    return _object_schema({"analysis": {"type": "string"}, "configs": configs})


def _summary(dropped: Counter[str]) -> dict[str, int]:
    common = dict(dropped.most_common(_MAX_REASONS))
    rest = dropped.total() - sum(common.values())
    return common | ({"other reasons": rest} if rest else {})


# Fitting a proposed object to the space


def fitted_config(values: Mapping[str, Any], space: ConfigSpace, dropped: Counter[str]) -> Config | None:
    """The config that ``values`` mean, what is missing at its default; None, with the reason counted, if none."""
    named = _by_parameter(values, space)
    unknown = [name for name in named if name not in space.parameters]
    for name in unknown:
        dropped[f"unknown parameter {_shown(name)}"] += 1
    if unknown and len(unknown) == len(named):
        return None
    config, misfits = dict(space.default), []
    for name, parameter in space.parameters.items():
        if name in named:
            try:
                config[name] = _fitted(parameter, named[name])
            except SpaceError:
                config[name] = parameter.default
                misfits.append(name)
    clean = space.normalised(config)
    for name in misfits:
        if not space.conditions.is_idle(name, clean):
            dropped[f"{name}={_shown(named[name])} does not fit"] += 1
            return None
    try:
        return space.canonical(clean)
    except SpaceError:
        dropped["refused by the constraint"] += 1
        return None


def _by_parameter(values: Mapping[str, Any], space: ConfigSpace) -> dict[str, Any]:
    """``values`` with names that differ from a parameter's in case only spelt as that, if it is the only one."""
    spelt: dict[str, Any] = {}
    for name, value in values.items():
        alike = [] if name in space.parameters else [p for p in space.names if p.lower() == name.strip().lower()]
        name = alike[0] if len(alike) == 1 and alike[0] not in values else name
        spelt[name] = value
    return spelt


def _fitted(parameter: Parameter, value: Any) -> Any:
    """The one value of ``parameter`` that ``value`` can mean; raises SpaceError where there is none."""
    for reading in _readings(parameter, value):
        with suppress(SpaceError, TypeError):
            return parameter.canonical(reading)
    raise SpaceError(f"{_shown(value)} does not fit")


def _readings(parameter: Parameter, value: Any) -> Iterator[Any]:
    """What ``value`` can mean to ``parameter``, the literal reading first."""
    yield value
    if isinstance(value, str):
        yield from (reading for spelt in _spelt(value) for reading in _readings(parameter, spelt))
    if isinstance(parameter, ListOf):
        items = value if isinstance(value, list) else [value]
        with suppress(SpaceError):
            yield [_fitted(parameter.inner, item) for item in items]
    elif isinstance(parameter, Permutation):
        yield [_integral(item) for item in value] if isinstance(value, list) else [_integral(value)]
    elif isinstance(value, list):
        if len(value) == 1:
            yield from _readings(parameter, value[0])
    elif isinstance(parameter, Choice):
        yield from _options(parameter, value)
    else:
        yield from _nearest(parameter, value)
    if value is None:
        yield parameter.default


def _spelt(text: str) -> list[Any]:
    """What a string spells besides itself: a literal, a number with a unit or remark behind it, a list."""
    bare = text.strip().strip("'\"` ")
    readings = [literal(bare)]
    if number := _REMARKED_NUMBER.fullmatch(bare):
        readings.append(literal(number[1]))
    if isinstance(listed := literal(f"[{bare}]"), list) and "," in bare:
        readings.append(listed)
    return [reading for reading in readings if reading != text]


def _options(parameter: Choice, value: Any) -> Iterator[Any]:
    """The option equal to ``value`` as Python or as text compares, if it is the only one."""
    for same in (lambda o: o == value, lambda o: str(o).lower() == str(value).strip().lower()):
        matching = [option for option in parameter.options if same(option)]
        if len(matching) == 1:
            yield matching[0]


def _nearest(parameter: Parameter, value: Any) -> Iterator[Any]:
    """The value of an ordered parameter nearest to a number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return
    if isinstance(parameter, Boolean) and value in (0, 1):
        yield bool(value)
    elif isinstance(parameter, Integer | PowerOfTwo) and not isinstance(value, bool):
        bounded = min(max(value, parameter.low), parameter.high)
        if isinstance(parameter, Integer):
            yield round(bounded)
        elif value > 0:
            yield 1 << round(math.log2(bounded))


def _integral(value: Any) -> Any:
    value = literal(value) if isinstance(value, str) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shown(value: Any) -> str:
    """A value from outside, short and without control characters."""
    text = "not a number" if value is NOT_A_NUMBER else str(value)[:40]
    return "".join(c if c.isprintable() else "?" for c in text)


# JSON schemas


def _object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _value_schema(parameter: Parameter) -> dict[str, Any] | None:
    if isinstance(parameter, Boolean):
        return {"type": "boolean"}
    if isinstance(parameter, Permutation):
        return {"type": "array", "items": {"type": "integer"}}
    if isinstance(parameter, ListOf):
        items = _value_schema(parameter.inner)
        return None if items is None else {"type": "array", "items": items}
    if isinstance(parameter, Integer) and parameter.size > 64:
        return {"type": "integer"}
    return _enumeration(parameter.values() or ())


_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def _enumeration(values: Iterable[Any]) -> dict[str, Any] | None:
    by_type: dict[str, list[Any]] = {}
    for value in values:
        if type(value) not in _TYPES:
            return None
        by_type.setdefault(_TYPES[type(value)], []).append(value)
    parts = [{"type": name, "enum": members} for name, members in by_type.items()]
    return parts[0] if len(parts) == 1 else {"anyOf": parts} if parts else None
