"""The source of a kernel: its functions with every function, class and constant that they reach.

Rules:
1. The user's own code is followed, through globals, attributes of modules, closures, defaults, decorators and imports
   inside functions. The standard library, installed packages and this package count by qualified name only, except
   the installed package that a kernel itself comes from.
2. Constants count by value, arrays by type, dtype and shape, other objects of other people's classes by type. A
   variable that the kernel itself rebinds is state, not a constant.
3. Names of files and modules, line numbers, layout, comments and docstrings do not count, nor does the checkout's
   directory in a constant made from ``__file__``: a kernel has one digest whatever directory, import mode or Python
   version it is read in. Only code without a readable source is told apart by its bytecode.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from pytest_kerneltune.introspection import (
    MAPPINGS,
    SCALARS,
    SEQUENCES,
    attributes,
    class_methods,
    class_scope,
    code_names,
    defined_in,
    described,
    display,
    file_text,
    folder_of,
    function_scope,
    is_fixture_request,
    is_library,
    library_name,
    module_file,
    module_text,
    unwrapped,
)
from pytest_kerneltune.syntax import (
    Dotted,
    Import,
    Node,
    References,
    canonical,
    find_class,
    find_function,
    parsed,
    references,
    segment,
)

TEXT_LIMIT = 20_000
"""The most characters of source that a prompt gets."""

_UNIT_LIMIT = 2000
_LIBRARY_LIMIT = 100  # units, past which an installed package is followed no further
_ITEM_LIMIT = 256
_DEPTH_LIMIT = 8
_MISSING = object()
_NOT_CONSTANTS = re.compile(
    r".*\b__(annotations|builtins|cached|dict|doc|file|firstlineno|loader|module|name|package|path|qualname|spec"
    r"|static_attributes|weakref)__|_abc_impl"
)


class _Token(str):
    """What a value is, in words that are equal for equal values."""

    __slots__ = ()


@dataclass(frozen=True)
class Unit:
    """A function, class, module or object that a kernel reaches.

    ``text`` is its source as written ("" where there is none to show), ``code`` its canonical form, ``reads`` what each
    name in it stands for, ``constants`` the lines that show the constants among those.
    """

    text: str
    code: str
    reads: tuple[tuple[str, str], ...] = ()
    constants: tuple[str, ...] = ()


def source_closure(functions: Sequence[Any]) -> list[Unit]:
    """Everything of the user's that ``functions`` reach, themselves first, then the nearest first."""
    return _Walk(functions).units


def source_digest(functions: Sequence[Any]) -> str:
    """A sha256 hex digest of all that ``functions`` reach, by the rules above.

    A function may be a plain function or lambda, a method, class, ``functools.partial``, callable object, or a
    wrapper that keeps what it wraps as ``fn`` or ``__wrapped__`` (as Triton's JIT functions do).
    """
    walk = _Walk(functions)
    content = [walk.roots, [(unit.code, unit.reads) for unit in walk.units]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def source_text(functions: Sequence[Any], limit: int = TEXT_LIMIT) -> str:
    """The source of ``functions`` as written, then the constants that they and what they call read, then the latter.

    At most about ``limit`` characters: what does not fit is left out, the farthest first, with a remark.
    """
    units = source_closure(functions)
    texts = list(dict.fromkeys(unit.text for unit in units if unit.text))
    constants = "\n".join(dict.fromkeys(line for unit in units for line in unit.constants))
    kept: list[str] = []
    for part in filter(None, (*texts[:1], constants, *texts[1:])):
        if kept and len(part) > limit - sum(map(len, kept)):
            return "\n\n".join([*kept, "# (more is left out)"])
        kept.append(clip(part, limit))
    return "\n\n".join(kept)


def clip(text: str, limit: int = TEXT_LIMIT) -> str:
    """``text``, cut at a line's end before ``limit`` characters, with a remark, where it is longer."""
    return text if len(text) <= limit else text[:limit].rpartition("\n")[0] + "\n... (cut)"


class _Walk:
    """One walk over live objects. In a token, ``#3`` is the fourth unit: a name's target whatever it is called."""

    def __init__(self, functions: Sequence[Any]) -> None:
        self._reached: list[Any] = []
        self._index: dict[int, int] = {}
        inner = [f for f in map(unwrapped, functions) if isinstance(f, FunctionType | type)]
        self._packages = {defined_in(f)[0].partition(".")[0] for f in inner if is_library(*defined_in(f))} - {
            "builtins"
        }
        self._folder = ""  # of the file that the unit at hand is in
        self.roots = [self._token(f) for f in functions]
        self.units = [self._unit(thing) for thing in self._reached]  # the list grows while it is walked

    def _unit(self, thing: Any) -> Unit:
        self._folder = folder_of(thing)
        if isinstance(thing, FunctionType):
            return self._function(thing)
        if isinstance(thing, type):
            return self._class(thing)
        if isinstance(thing, ModuleType):
            return Unit("", canonical(parsed(module_text(thing))))
        return Unit("", f"object of {self._token(type(thing))} {described(thing)}", self._members(attributes(thing)))

    def _function(self, function: FunctionType) -> Unit:
        code, scope = function.__code__, function_scope(function)
        defaults = {f"default {i}": v for i, v in enumerate(function.__defaults__ or ())}
        reads = self._members({**defaults, **(function.__kwdefaults__ or {})})
        text = file_text(code.co_filename, function.__globals__)
        node = find_function(text, code)
        if node is not None:
            with contextlib.suppress(RecursionError):  # generated code may nest deeper than a syntax tree can be walked
                return self._written(text, node, scope, reads)
        names = code_names(code)
        modules = {n for n in names if isinstance(scope.get(n), ModuleType)}
        paths: set[Dotted] = {(n,) for n in names - modules}
        paths |= {(n, a) for n in modules for a in names if hasattr(scope[n], a)}
        found = self._resolved(References(tuple(sorted(paths)), frozenset(), {}), scope)
        return Unit("", self._bytecode(code), (*reads, *self._members(found)))

    def _class(self, cls: type) -> Unit:
        text = module_text(sys.modules.get(cls.__module__))
        node = find_class(text, cls.__qualname__, [m.__code__.co_firstlineno for m in class_methods(cls)])
        if node is not None:
            return self._written(text, node, class_scope(cls), ())
        return Unit("", f"class of {self._token(cls.__bases__)}", self._members(vars(cls)))

    def _written(self, text: str, node: Node, scope: Mapping[str, Any], reads: tuple[tuple[str, str], ...]) -> Unit:
        found = self._resolved(references(node), scope)
        constants = tuple(
            f"{k} = {shown}" for k, v in found.items() if not isinstance(v, _Token) and (shown := display(v))
        )
        return Unit(segment(text, node), canonical(node), (*reads, *self._members(found)), constants)

    def _members(self, values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        return tuple((name, self._token(v)) for name, v in sorted(values.items()) if not _NOT_CONSTANTS.fullmatch(name))

    def _bytecode(self, code: CodeType) -> str:
        constants = [self._bytecode(c) if isinstance(c, CodeType) else self._token(c) for c in code.co_consts]
        names = (code.co_name, code.co_argcount, code.co_kwonlyargcount, code.co_names, code.co_varnames)
        return f"{names!a} {code.co_code.hex()} {constants!a}"

    def _resolved(self, found: References, scope: Mapping[str, Any]) -> dict[str, Any]:
        """Dotted name to what it stands for; names that nothing binds are left out."""
        values: dict[str, Any] = {}
        for path in found.paths:
            name = path[0]
            if name in found.assigned:
                values[name] = _Token("state")
            elif name in found.imports:
                values[".".join(path)] = self._imported(found.imports[name], path[1:], scope)
            elif name in scope:
                values[".".join(path)] = self._attribute(scope[name], path[1:])
        return values

    def _attribute(self, value: Any, names: Sequence[str]) -> Any:
        """What a dotted name stands for: attributes are followed as long as they are taken from the user's modules."""
        while isinstance(value, ModuleType) and names:
            if not self._is_own(value.__name__, module_file(value)):
                return _Token(f"library {'.'.join((value.__name__, *names))}")
            value, names = getattr(value, names[0], _MISSING), names[1:]
        return value

    def _imported(self, statement: Import, names: Sequence[str], scope: Mapping[str, Any]) -> Any:
        try:
            name = importlib.util.resolve_name("." * statement.level + statement.loads, scope.get("__package__"))
            spec = importlib.util.find_spec(name.partition(".")[0])
            file = spec.origin or next(iter(spec.submodule_search_locations or ()), "") if spec else ""
            if not self._is_own(name, file):
                return _Token(f"library {'.'.join((name, statement.attribute, *names))}")
            module = import_module(name)
            if not statement.attribute:
                module = module if statement.module == statement.loads else sys.modules[statement.module]
            elif hasattr(module, statement.attribute):
                module = getattr(module, statement.attribute)
            else:
                module = import_module(f"{name}.{statement.attribute}")
        except Exception:  # an import runs the user's module, which may raise anything; the kernel will raise it too
            return _MISSING
        return self._attribute(module, names)

    def _token(self, value: Any, depth: int = 0) -> str:
        if isinstance(value, _Token):
            return value
        if value is None or value is ... or value is _MISSING:
            return "unbound" if value is _MISSING else str(value)
        if isinstance(value, str):
            return f"{type(value).__qualname__} {self._portable(str(value))!a}"
        for scalar in SCALARS:
            if isinstance(value, scalar):
                return f"{type(value).__qualname__} {scalar(value)!a}"
        if isinstance(value, MAPPINGS + SEQUENCES):
            return self._container(value, depth)
        return self._code(value, depth) or self._object(value, depth)

    def _portable(self, text: str) -> str:
        """A path beside or one folder above the unit's file, as a constant made from ``__file__`` is, without that."""
        for folder, name in ((self._folder, "."), (self._folder.rpartition("/")[0], "..")):
            if folder and (text == folder or text.startswith(f"{folder}/")):
                return name + text[len(folder) :]
        return text

    def _container(self, value: Any, depth: int) -> str:
        kind = f"{type(value).__qualname__} of {len(value)}"
        if depth > _DEPTH_LIMIT:
            return kind
        if isinstance(value, set | frozenset):
            # A set has no order of its own, and to number units in the order they come would make one up.
            return f"{kind} {sorted(ascii(v) if isinstance(v, SCALARS) else type(v).__qualname__ for v in value)}"
        items: Iterable[Any] = value.items() if isinstance(value, MAPPINGS) else value
        tokens = [self._token(item, depth + 1) for item, _ in zip(items, range(_ITEM_LIMIT), strict=False)]
        return f"{kind} [{', '.join(tokens)}]"

    def _code(self, value: Any, depth: int) -> str:
        if isinstance(value, ModuleType):
            own = self._is_own(value.__name__, module_file(value))
            return self._reference(value) if own else f"library {value.__name__}"
        if isinstance(value, MethodType):
            return f"method {self._token(value.__func__)} of {self._token(value.__self__, depth + 1)}"
        if isinstance(value, BuiltinFunctionType) and not isinstance(value.__self__, ModuleType | None):
            return f"method {value.__name__} of {self._token(value.__self__, depth + 1)}"
        if isinstance(value, functools.partial):
            return f"partial {self._token((value.func, value.args, value.keywords), depth + 1)}"
        if not isinstance(value, FunctionType | type):
            return ""
        if self._is_own(*defined_in(value)):
            return self._reference(value)
        inner = unwrapped(value)
        return library_name(value) if inner is value else f"wrapper of {self._token(inner, depth + 1)}"

    def _object(self, value: Any, depth: int) -> str:
        kind = type(value)
        if isinstance(value, Enum):
            return f"{kind.__qualname__}.{value.name} {self._token(value.value, depth + 1)}"
        if not is_library(*defined_in(kind)):
            return self._reference(value)
        if isinstance(value, range | slice):
            return ascii(value)
        if isinstance(value, SimpleNamespace):
            return self._token(vars(value), depth + 1)
        if is_fixture_request(value):
            return f"request {self._token(getattr(value, 'param', None), depth + 1)}"
        if kind.__name__ == "constexpr":
            return f"constexpr {self._token(value.value, depth + 1)}"
        inner = unwrapped(value)
        return described(value) or (
            library_name(value) if inner is value else f"{kind.__qualname__} of {self._token(inner, depth + 1)}"
        )

    def _reference(self, thing: Any) -> str:
        if id(thing) not in self._index:
            if len(self._reached) >= _UNIT_LIMIT:
                return "too far"
            self._index[id(thing)] = len(self._reached)
            self._reached.append(thing)
        return f"#{self._index[id(thing)]}"

    def _is_own(self, module: str, file: str) -> bool:
        if is_library(module, file):
            return module.partition(".")[0] in self._packages and len(self._reached) < _LIBRARY_LIMIT
        return True
