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
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any

from pytest_kerneltune.introspection import file_text
from pytest_kerneltune.syntax import parsed

_READS_FILES = re.compile(r"(load|from|read|genfrom|memmap|open)")
"""Beginnings of the names of functions that read what is not in the source."""
_REEXPORTS = 20
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
    node = ast.parse("def made(): pass").body[0]
    assert isinstance(node, ast.FunctionDef)
    node.body = list(statements)
    return Origin(name, namespace, text, node, any(map(_reads_file, statements)))


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
