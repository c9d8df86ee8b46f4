"""How a module makes a variable: what tells two values apart of which nothing but the type can be seen.

An array, a compiled pattern or somebody's handle has a content that differs from run to run (random or uninitialised
numbers, addresses), or that takes long to read. The statements that make it are the same in every run, and change where
somebody edits them.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections import ChainMap, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any

from pytest_kerneltune.source.introspection import attributes, file_text, own_attributes, unwrapped
from pytest_kerneltune.source.syntax import Dotted, References, parsed

_READS_FILES = re.compile(r"(load|from|read|genfrom|memmap|open)")
"""Beginnings of the names of functions that read what is not in the source."""
_REEXPORTS = 20
_CONTAINERS = (dict, list, set, deque, bytearray)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, eq=False)
class Origin:
    """The statements of a module that make the variable ``name`` of it; ``node`` is a function with them as its body.

    ``reads_files`` says whether what they make may depend on a file, so that the statements do not tell it all.
    """

    name: str
    namespace: dict[str, Any] = field(repr=False)
    text: str = field(repr=False)
    node: ast.FunctionDef
    reads_files: bool


def origin(namespace: dict[str, Any], name: str) -> Origin | None:
    """How the module with that namespace makes ``name``, or the one that it imports it from; None where none shows."""
    return _origin(namespace, name, 0)


def _origin(namespace: dict[str, Any], name: str, steps: int) -> Origin | None:
    file = namespace.get("__file__")
    text = file_text(file, namespace) if isinstance(file, str) else ""
    made = _made(text)
    statements = made.get(name, ())
    for statement in statements or made.get("*", ()):
        if isinstance(statement, ast.ImportFrom) and steps < _REEXPORTS:
            source = _imported(statement, namespace)
            names = [a.name for a in statement.names if name in (a.asname or a.name, "*") or a.name == "*"]
            there = name if names == ["*"] else names[-1] if names else name
            if source is not None and there in vars(source):
                found = _origin(vars(source), there, steps + 1)
                if found is not None:
                    return found
    if not statements:
        return None
    return Origin(name, namespace, text, *_function_of(statements))


@lru_cache(maxsize=1024)
def _function_of(statements: tuple[ast.stmt, ...]) -> tuple[ast.FunctionDef, bool]:
    """A function with ``statements`` as its body, and whether one reads a file."""
    node = ast.parse("def made(): pass").body[0]
    assert isinstance(node, ast.FunctionDef)
    node.body = list(statements)
    return node, any(map(_reads_file, statements))


def namespace(scope: ChainMap[str, Any], name: str) -> dict[str, Any] | None:
    """The namespace of the module in which ``name`` is found; None for a closure's variables and Python's own."""
    holder = next((m for m in scope.maps if name in m), {})
    if not isinstance(holder, dict) or "__name__" not in holder or holder["__name__"] == "builtins":
        return None
    return holder


def changes(names: References, scope: ChainMap[str, Any], is_kernel: bool) -> set[tuple[int, str]]:
    """What code changes outside itself as it runs, so that it differs from run to run wherever it is read.

    As (id of the module's namespace, object, class or function, name) where it sets that, (id, "") for a container that
    it both looks up and fills, or that the kernel itself fills: what others only fill is more likely a register.
    What decorators change, they change while modules are imported (``applied``).
    """
    spaces = [(namespace(scope, name), name) for name in names.assigned]
    found = {(id(space), name) for space, name in spaces if space is not None}
    for path in names.stored:
        holder = _held(path[:-1], scope)
        is_module = issubclass(type(holder), ModuleType)
        found.add((id(own_attributes(holder) if is_module else holder), path[-1]))
    filled = [_held(path, scope) for path in (names.filled if is_kernel else names.memos)]
    return found | {(id(value), "") for value in filled if issubclass(type(value), _CONTAINERS)}


def applied(names: References, scope: ChainMap[str, Any]) -> set[int]:
    """The ids of the functions and classes that decorators are, or that hold them as attributes."""
    held = [_held(path[:n], scope) for path in names.decorators for n in range(1, len(path) + 1)]
    return {id(code) for value in held for code in (unwrapped(value), type(value))}


def _held(path: Dotted, scope: ChainMap[str, Any]) -> Any:
    """What a dotted name stands for, as far as no code of the user's has to run to say so; None for others."""
    value = scope.get(path[0])
    for name in path[1:]:
        if issubclass(type(value), type):
            value = type.__getattribute__(value, "__dict__").get(name)
        else:
            value = attributes(value).get(name)
    return value


def _imported(statement: ast.ImportFrom, namespace: dict[str, Any]) -> ModuleType | None:
    try:
        package = namespace.get("__package__")
        name = importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)
    except (ImportError, TypeError, ValueError):  # a relative import outside a package
        return None
    return sys.modules.get(name)


def _reads_file(statement: ast.stmt) -> bool:
    calls = (n.func for n in ast.walk(statement) if isinstance(n, ast.Call))
    names = (f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls)
    return any(_READS_FILES.match(name) for name in names)


@lru_cache(maxsize=128)
def _made(text: str) -> dict[str, tuple[ast.stmt, ...]]:
    """Name to the statements at a module's top that bind or change it; "*" to the imports of all of a module."""
    found: dict[str, tuple[ast.stmt, ...]] = {}
    for statement in parsed(text).body:
        for name in dict.fromkeys(_names(statement)):
            found[name] = (*found.get(name, ()), statement)
    return found


def _names(statement: ast.AST) -> Iterator[str]:
    if isinstance(statement, _SCOPES):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.Name | ast.Attribute | ast.Subscript):
        if isinstance(statement.ctx, ast.Store):
            yield _base(statement)
    else:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            yield _base(statement.value.func)  # TABLE.fill(0)
        for child in ast.iter_child_nodes(statement):
            yield from () if isinstance(child, ast.Lambda) else _names(child)


def _base(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
