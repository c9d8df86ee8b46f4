"""The text that Helion generates for a config, as a module: a Triton kernel, and the host function that launches it.

Such a module imports little of helion: the launcher and a few functions for kernels, in files that need torch and
Triton only. Where helion itself is not imported (which takes seconds), those files are loaded without it. It imports
the user's module, too, where the kernel reads constants there: these are written into the text instead.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.util
import inspect
import linecache
import math
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

_MODULES = 64  # generated modules that stay loaded
_LAUNCHER = "launcher"
_RUNTIME, _HELPERS = "helion.runtime", "helion.runtime.triton"


def generated(bound: Any, config: Any) -> str:
    """The text of the module that Helion makes of ``config``; raises what Helion does where it can't."""
    # Without the numbers of the kernel's lines, which are no part of what is compiled.
    known = inspect.signature(bound.to_triton_code).parameters
    options = {"output_origin_lines": False} if "output_origin_lines" in known else {}
    return _with_constants(bound.to_triton_code(config, **options))


def _with_constants(source: str) -> str:
    """``source`` with the constants of the modules of which it reads nothing else, in the lines that imported them."""
    tree, lines = ast.parse(source), source.splitlines(keepends=True)
    for node in tree.body:
        if not isinstance(node, ast.Import) or len(node.names) != 1 or node.names[0].asname is None:
            continue
        name, alias = node.names[0].name, node.names[0].asname
        read = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and _is_name(n.value, alias)}
        values = {attribute: getattr(sys.modules.get(name), attribute, ...) for attribute in sorted(read)}
        if values and all(_is_constant(value) for value in values.values()):
            lines[node.lineno - 1] = f"import types; {alias} = types.SimpleNamespace(**{values!r})\n"
    return "".join(lines)


def imported_modules(source: str) -> list[str]:
    """Names of the modules that a generated module imports."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [name for node in found for name in _imported_by(node)]


def _imported_by(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_constant(value: Any) -> bool:
    """Whether ``value`` can be written as a literal."""
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


@lru_cache(_MODULES)
def loaded(source: str) -> ModuleType:
    """The generated module of that text; equal text has equal lines, and so one entry in Triton's cache, everywhere."""
    name = f"helion_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    filename = f"<{name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = ModuleType(name)
    if "helion" not in sys.modules:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
    exec(compile(source, filename, "exec"), module.__dict__)
    return module


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,  # noqa: A002 - as __import__ has it
    locals: Mapping[str, Any] | None = None,  # noqa: A002
    fromlist: tuple[str, ...] | None = (),
    level: int = 0,
) -> Any:
    if name.partition(".")[0] != "helion" or "helion" in sys.modules:
        return __import__(name, globals, locals, fromlist or (), level)
    return _Light(name if fromlist else "helion")


class _Light(ModuleType):
    """A module of helion that loads what it is asked for from the file that holds it, or imports helion after all."""

    def __getattr__(self, name: str) -> Any:
        if self.__name__ == _RUNTIME and (launcher := _file(_LAUNCHER)) is not None and hasattr(launcher, name):
            return getattr(launcher, name)
        if self.__name__ == _HELPERS and (helpers := _file(name)) is not None:
            return helpers
        if _HELPERS.startswith(f"{self.__name__}.{name}"):
            return _Light(f"{self.__name__}.{name}")
        return getattr(import_module(self.__name__), name)


@lru_cache
def _file(name: str) -> ModuleType | None:
    """The file of that name in helion's folder of what a launched Triton kernel needs; None where there is none."""
    home = importlib.util.find_spec("helion")
    folders = map(Path, (home.submodule_search_locations or ()) if home else ())
    path = next((f for folder in folders if (f := folder / "runtime" / "triton" / f"{name}.py").exists()), None)
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location(f"{_HELPERS}.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
