"""Which kernel a fixture request is about: the file it belongs to, and its name with its parameters.

Baselines are kept under this identity, so it may not depend on which tests run, and no two kernels may share one.
pytest has no public way to ask what a fixture depends on and with which parameters; what is read here is what its own
``--setup-plan`` and test ids are made of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from numbers import Number
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.texts import printable

_PARAM = type(pytest.param(None))
_SIMPLE = str | Number | None
_LONGEST = 60  # characters that are made of a list or mapping


def identity(request: pytest.FixtureRequest, function: Callable[..., Any]) -> tuple[str, str]:
    """The file that the kernel belongs to, relative to the root directory, and its name with its parameters.

    The kernel belongs to the file that defines it or, where a more specific file or class overrides a fixture that
    it uses, to that one: so each file's kernels have names of their own, whichever tests run.
    """
    chain = _chain(request)
    home = max(chain, key=lambda definition: len(definition.baseid))
    path, _, classes = home.baseid.partition("::")
    root = request.config.rootpath
    file = root / path if path.endswith(".py") else _source_file(function if home is chain[0] else home.func)
    shown = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()
    prefix = f"{classes.replace('::', '.')}." if classes else ""
    return shown, f"{prefix}{request.fixturename}{_parameters(request, chain)}"


def active_definitions(request: Any, asked: Mapping[Any, Sequence[Any]]) -> list[Any]:
    """The fixture definitions that a test uses, those that it reaches only through other fixtures included.

    ``asked`` holds what each definition asked for by ``request.getfixturevalue`` when it was last set up.
    """
    found = list(request._fixture_defs.values())
    for definition in found:
        more = [*asked.get(definition, ()), *_overridden(request, definition)]
        found += [d for d in more if d not in found]
    return found


def _chain(request: Any) -> list[Any]:
    """The definition of the requesting fixture, then those of the fixtures that it uses."""
    found = [request._fixturedef]  # not the last of its name where one that overrides it asked for it
    for definition in found:
        names = [name for name in definition.argnames if name != definition.argname]
        used = [levels[-1] for levels in (_levels(request, name) for name in names) if levels]
        found += [d for d in [*_overridden(request, definition), *used] if d not in found]
    return found


def _overridden(request: Any, definition: Any) -> Sequence[Any]:
    """The definition of the same name that ``definition`` overrides and asks for, if it does."""
    if definition.argname not in definition.argnames:
        return ()
    levels = list(_levels(request, definition.argname))
    at = levels.index(definition) if definition in levels else 0
    return levels[max(0, at - 1) : at]


def _levels(request: Any, name: str) -> Sequence[Any]:
    """The definitions of a fixture that the test sees, the closest last."""
    item = request._pyfuncitem
    node = item if pytest.version_tuple >= (8, 1) else item.nodeid
    known = item._fixtureinfo.name2fixturedefs
    levels: Sequence[Any] = known.get(name) or request._fixturemanager.getfixturedefs(name, node) or ()
    return levels


def _source_file(function: Any) -> Path:
    plain = inspect.unwrap(function)
    return Path(inspect.getsourcefile(plain) or plain.__code__.co_filename)


def _parameters(request: Any, chain: Sequence[Any]) -> str:
    """ "[n1024-float16]": the ids of the parameters that the kernel depends on, its own first."""
    if not (callspec := getattr(request._pyfuncitem, "callspec", None)):
        return ""
    names = [name for name in dict.fromkeys(d.argname for d in chain) if name in callspec.params]
    labels = [_source(request, n).label(n, callspec.params[n], callspec.indices.get(n, 0)) for n in names]
    return f"[{printable('-'.join(labels))}]" if labels else ""


@dataclass(frozen=True)
class _Source:
    """Where a parameter's values come from: a fixture's ``params`` or a ``parametrize`` mark, with its ids.

    ``position`` is that of the parameter in a mark for several, whose ids stand for all of them together.
    """

    values: Sequence[Any] = ()
    ids: Sequence[Any] | Callable[[Any], Any] | None = None
    position: int | None = None

    def label(self, name: str, value: Any, index: int) -> str:
        """The parameter's id, with its index where another value has the same id."""
        own = [self._value(i) for i in range(len(self.values))]
        if index >= len(own) or own[index] is not value:  # pytest numbers the values of a direct mark in another way
            place = next((i for i, known in enumerate(own) if known is value), None)
            if place is None:
                return _label(name, value, index)
            index = place
        found = self._id(name, index)
        others = (i for i in range(len(own)) if not _is_same(own[i], value))
        return f"{found}_{index}" if any(self._id(name, i) == found for i in others) else found

    def _value(self, index: int) -> Any:
        entry = self.values[index]
        values = entry.values if isinstance(entry, _PARAM) else (entry,) if self.position is None else entry
        return values[self.position or 0]

    def _id(self, name: str, index: int) -> str:
        entry, value, ids = self.values[index], self._value(index), self.ids
        explicit = entry.id if isinstance(entry, _PARAM) else None
        if explicit is None and callable(ids):
            return _label(name, value if (own := ids(value)) is None else own, index)
        if explicit is None and isinstance(ids, Sequence) and index < len(ids):
            explicit = ids[index]
        # An id for several parameters together says too much about one of them, if that can speak for itself.
        usable = isinstance(explicit, str | Number) and (self.position is None or not _text(value))
        return _label(name, explicit if usable else value, index)


def _source(request: Any, name: str) -> _Source:
    for mark in request._pyfuncitem.iter_markers("parametrize"):
        given = dict(zip(("argnames", "argvalues", "indirect", "ids"), mark.args, strict=False)) | mark.kwargs
        names = given["argnames"]
        names = [n.strip() for n in names.split(",") if n.strip()] if isinstance(names, str) else list(names)
        if name in names:
            values = given["argvalues"] if isinstance(given["argvalues"], Sequence) else ()
            return _Source(values, _listed(given.get("ids")), names.index(name) if len(names) > 1 else None)
    definition = next((d for d in reversed(_levels(request, name)) if d.params is not None), None)
    return _Source(definition.params, definition.ids) if definition is not None else _Source()


def _listed(ids: Any) -> Any:
    """``ids`` of a mark; an iterator, which pytest has used up, counts as none."""
    return ids if callable(ids) or isinstance(ids, Sequence) else None


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and _text(one) != "" and _text(one) == _text(other))


def _label(name: str, value: Any, index: int) -> str:
    """What is made of a value without an id: its text where that tells it from others, else the name and index."""
    own = getattr(value, "__name__", None)
    return _text(value) or (own if isinstance(own, str) else f"{name}{index}")


def _text(value: Any) -> str:
    """A value in words, "" where it has none; equal words in two tests are equal values."""
    if isinstance(value, Enum | _SIMPLE):
        return str(value)
    if any(kind.__name__ == "dtype" for kind in type(value).__mro__):
        return str(value).rpartition(".")[2]  # torch.float16
    if isinstance(value, Mapping):
        pairs = {str(key): _text(item) for key, item in value.items()}
        items = [f"{key}={text}" if text else "" for key, text in pairs.items()]
    elif isinstance(value, list | tuple):
        items = [_text(item) for item in value]
    else:
        return ""
    text = ",".join(items)
    return text if all(items) and len(text) <= _LONGEST else ""
