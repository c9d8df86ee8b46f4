"""Triton's JIT functions sent to another process: by name, or as source and options."""

from __future__ import annotations

import ast
import linecache
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import FunctionType
from typing import Any

_OPTIONS = {
    "version": "version",
    "do_not_specialize": "do_not_specialize",
    "do_not_specialize_on_alignment": "do_not_specialize_on_alignment",
    "debug": "debug",
    "noinline": "noinline",
    "repr": "_repr",
    "launch_metadata": "launch_metadata",
}
"""Arguments of ``triton.jit`` to the attributes of a JITFunction that hold them."""


def jit_reducers(by_reference: Callable[[str], bool]) -> dict[type, Callable[[Any], Any]]:
    """Reducers for ``packing.pack``: JIT functions of the modules that ``by_reference`` accepts travel as names, all
    others (and those that their names do not lead to) as source and options."""

    def reduce(function: Any) -> tuple[Any, ...]:
        raw = function.fn
        if by_reference(raw.__module__) and _found(sys.modules.get(raw.__module__), raw.__qualname__) is function:
            return _named, (raw.__module__, raw.__qualname__)
        return _reduced_by_value(function)

    return {_jit_type(): reduce}


def _jit_type() -> type:
    from triton.runtime import jit

    found: type = getattr(jit, "JITCallable", jit.JITFunction)
    return found


def _named(module: str, qualname: str) -> Any:
    return _found(import_module(module), qualname)


def _found(module: Any, qualname: str) -> Any:
    """The JIT function of that name in a module, under whatever decorators it has there; None if there is none."""
    found = module
    for name in qualname.split("."):
        found = getattr(found, name, None)
    while not isinstance(found, _jit_type()) and hasattr(found, "fn"):
        found = found.fn
    return found


def _reduced_by_value(function: Any) -> tuple[Any, ...]:
    raw: FunctionType = function.fn
    lines, start = _source(function)
    options = {k: v for k, attribute in _OPTIONS.items() if (v := getattr(function, attribute, None)) is not None}
    # Triton reads annotations, too, whose names Python's bytecode does not mention.
    read = {name: raw.__globals__[name] for name in _annotation_names(lines) if name in raw.__globals__}
    return _rebuilt, (type(function), raw, lines, start, options), read, None, None, _provide


def _annotation_names(lines: Sequence[str]) -> list[str]:
    nodes = ast.walk(ast.parse(textwrap.dedent("".join(lines))))
    annotations = [node.annotation for node in nodes if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation]
    return sorted({node.id for part in annotations for node in ast.walk(part) if isinstance(node, ast.Name)})


def _source(function: Any) -> tuple[list[str], int]:
    """The lines of a function and the number of the first: its first decorator's."""
    start: int = function.starting_line_number
    if hasattr(function, "raw_src"):
        return list(function.raw_src), start
    return ["@triton.jit\n", *function.src.splitlines(keepends=True)], start  # older Triton keeps no decorators


def _rebuilt(kind: Any, raw: FunctionType, lines: list[str], start: int, options: dict[str, Any]) -> Any:
    filename = raw.__code__.co_filename
    linecache.checkcache(filename)
    known = linecache.getlines(filename)
    if known[start - 1 : start - 1 + len(lines)] != lines:  # the file is not here, or was edited since
        known = [*(known + ["\n"] * start)[: start - 1], *lines]
        linecache.cache[filename] = (sum(map(len, known)), None, known, filename)
    return kind(raw, **options)


def _provide(function: Any, read: Mapping[str, Any]) -> None:
    function.fn.__globals__.update(read)
