"""The walk from a kernel's functions over all live objects that they reach; the package has the rules."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import re
import sys
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import CodeType, FunctionType, ModuleType
from typing import Any

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.source.arrays import contents, takes_addresses
from pytest_kerneltune.source.introspection import (
    MAPPINGS,
    SEQUENCES,
    attributes,
    class_methods,
    class_scope,
    code_names,
    data_attributes,
    defined_in,
    described,
    display,
    file_text,
    folder_of,
    function_scope,
    is_library,
    module_file,
    module_name,
    module_text,
    own_attributes,
    tried,
    unwrapped,
)
from pytest_kerneltune.source.origins import Origin, applied, changes, namespace, origin
from pytest_kerneltune.source.syntax import (
    Dotted,
    Import,
    Node,
    References,
    find_class,
    find_function,
    form,
    parsed,
    references,
    segment,
)
from pytest_kerneltune.source.values import MISSING, Token, Values

_UNIT_LIMIT = 2000
_THOROUGH_LIMIT = 20_000
_WALKS = 5
_LIBRARY_LIMIT = 100  # units, past which an installed package is followed no further
_NOT_CONSTANTS = re.compile(
    r".*\b__(annotations|builtins|cached|dict|doc|file|firstlineno|loader|module|name|package|path|qualname|spec"
    r"|static_attributes|weakref)__|_abc_impl"
)


@dataclass(frozen=True)
class Unit:
    """A function, class, module or object that a kernel reaches, or how a module makes a variable.

    ``text`` is its source as written ("" where there is none to show), ``code`` its canonical form, ``reads`` what each
    name in it stands for, ``constants`` the lines that show the constants among those.
    """

    text: str
    code: str
    reads: tuple[tuple[str, str], ...] = ()
    constants: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Found:
    """What a dotted name stands for; ``namespace`` is that of the module that holds it as ``name`` (None: none)."""

    value: Any
    namespace: dict[str, Any] | None = None
    name: str = ""


class Walk:
    """One walk. In a token, ``#3`` is the fourth unit: a name's target whatever it is called.

    With ``thorough``, also what the rules of the package ask for of a kernel; UsageError where there is too much.
    """

    def __init__(self, functions: Sequence[Any], thorough: bool = False) -> None:
        self._thorough = thorough
        self._origins: dict[tuple[int, str], Origin | None] = {}
        inner = [f for f in map(unwrapped, functions) if issubclass(type(f), FunctionType | type)]
        self._packages = {defined_in(f)[0].partition(".")[0] for f in inner if is_library(*defined_in(f))} - {
            "builtins"
        }
        self._values = Values(self._refer, self._is_own, thorough)
        self._changes: dict[int, set[tuple[int, str]]] = {}
        self._applied: set[int] = set()
        self._walk(functions)
        for _ in range(_WALKS):  # what the kernel changes is known once all has been reached
            changed = {change for code, found in self._changes.items() if code not in self._applied for change in found}
            if changed == self._values.changed:
                break
            self._values.changed = changed
            self._walk(functions)
        if thorough and len(self.units) >= _LIBRARY_LIMIT:
            self.roots += [f"{p} {getattr(sys.modules.get(p), '__version__', '')}" for p in sorted(self._packages)]

    def _walk(self, functions: Sequence[Any]) -> None:
        self._reached: list[tuple[Any, str]] = []
        self._index: dict[int, int] = {}
        self._kinds: dict[int, tuple[str, str, bool]] = {}
        self.units: list[Unit] = []
        self.roots = [self._values.token(f) for f in functions]
        self._own_roots = len(self._reached)
        for thing, folder in self._reached:  # grows while it is walked
            self.units.append(self._unit(thing, folder) if type(thing) is FunctionType else self._tried(thing, folder))

    def _tried(self, thing: Any, folder: str) -> Unit:
        """All of the module where an object or class of the user's refuses to be looked at."""
        found = tried(self._unit, thing, folder, otherwise=None)
        kind = thing if issubclass(type(thing), type) else type(thing)
        module = sys.modules.get(str(type.__getattribute__(kind, "__module__")))
        return found or Unit("", f"unreadable, in {form(parsed(module_text(module)))}")

    def _unit(self, thing: Any, folder: str) -> Unit:
        kind = type(thing)  # asked for once: isinstance would ask an object's own class
        if issubclass(kind, ModuleType):
            held = own_attributes(thing) if self._thorough else {}
            code = {n: v for n, v in held.items() if issubclass(type(v), FunctionType | ModuleType | type)}
            return Unit("", form(parsed(module_text(thing))), self._members(code))
        if kind is Origin:
            return self._origin_unit(thing)
        if issubclass(kind, FunctionType | type):
            self._values.folder = folder_of(thing)
            return self._function(thing) if kind is FunctionType else self._class(thing)
        if is_library(*defined_in(kind)) or issubclass(kind, MAPPINGS + SEQUENCES):
            self._values.folder = folder
            return Unit("", self._values.token(thing))
        if id(kind) not in self._kinds:  # somebody's class may refuse to be hashed
            text = module_text(sys.modules.get(kind.__module__))
            self._kinds[id(kind)] = self._values.token(kind), folder_of(kind), takes_addresses(text)
        token, self._values.folder, self._values.takes_addresses = self._kinds[id(kind)]
        held = self._unchanged(thing, attributes(thing))
        return Unit("", f"object of {token} {described(thing)}", self._members(held))

    def _function(self, function: FunctionType) -> Unit:
        code, scope = function.__code__, function_scope(function)
        text = file_text(code.co_filename, function.__globals__)
        self._values.takes_addresses = takes_addresses(text)
        defaults = {f"default {i}": v for i, v in enumerate(function.__defaults__ or ())}
        held = self._unchanged(function, data_attributes(function))
        reads = self._members({**defaults, **(function.__kwdefaults__ or {}), **held})
        node = find_function(text, code)
        if node is not None:
            with contextlib.suppress(RecursionError):  # generated code may nest deeper than a syntax tree can be walked
                return self._written(text, node, scope, reads)
        names = code_names(code)
        modules = {n for n in names if issubclass(type(scope.get(n)), ModuleType)}
        paths: set[Dotted] = {(n,) for n in names - modules}
        paths |= {(n, a) for n in modules for a in names if hasattr(scope[n], a)}
        found = self._resolved(References(tuple(sorted(paths)), frozenset(), {}), scope)
        return Unit("", self._bytecode(code), (*reads, *self._read(found)))

    def _class(self, cls: type) -> Unit:
        text = module_text(sys.modules.get(cls.__module__))
        self._values.takes_addresses = takes_addresses(text)
        node = find_class(text, cls.__qualname__, [m.__code__.co_firstlineno for m in class_methods(cls)])
        if node is not None:
            own = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
            held = {n: v for n, v in self._unchanged(cls, data_attributes(cls)).items() if n not in own}
            return self._written(text, node, class_scope(cls), self._members({**self._added(cls), **held}))
        return Unit("", f"class of {self._values.token(cls.__bases__)}", self._members(vars(cls)))

    def _unchanged(self, holder: Any, held: Mapping[str, Any]) -> dict[str, Any]:
        """What of ``held`` the kernel does not set itself; of a class or function nothing without ``thorough``."""
        if not self._thorough and issubclass(type(holder), FunctionType | type):
            return {}
        return {n: v for n, v in held.items() if (id(holder), n) not in self._values.changed}

    def _added(self, cls: type) -> dict[str, Any]:
        """Functions that somebody put into the class, which its body does not show."""
        written = set(map(id, class_methods(cls)))
        found = {name: unwrapped(member) for name, member in vars(cls).items()} if self._thorough else {}
        added = {n: f for n, f in found.items() if isinstance(f, FunctionType) and id(f) not in written}
        return {
            f"added {n}": f
            for n, f in added.items()
            if self._is_own(*defined_in(f)) and f.__code__.co_filename[0] != "<"
        }

    def _written(self, text: str, node: Node, scope: ChainMap[str, Any], reads: tuple[tuple[str, str], ...]) -> Unit:
        names = references(node)
        if self._thorough:
            code, _ = self._reached[len(self.units)]
            self._applied |= applied(names, scope)
            self._changes[id(code)] = changes(names, scope, len(self.units) < self._own_roots)
        found = self._resolved(names, scope)
        if self._thorough:  # for a digest, which shows nothing to anybody
            return Unit("", form(node), (*reads, *self._read(found)))
        shown = {k: display(f.value) for k, f in found.items() if type(f.value) is not Token}
        constants = tuple(f"{name} = {value}" for name, value in shown.items() if value)
        return Unit(segment(text, node), form(node), (*reads, *self._read(found)), constants)

    def _origin_unit(self, thing: Origin) -> Unit:
        self._values.folder = folder_of(sys.modules.get(thing.namespace.get("__name__", "")))
        self._values.takes_addresses = takes_addresses(thing.text)
        try:
            found = self._resolved(references(thing.node), ChainMap({}, thing.namespace))
        except SyntaxError:  # what only a module's top may hold, such as an import of all names
            found = {}
        return Unit("", form(thing.node), self._read(found))

    def _members(self, values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        return self._read({str(name): _Found(value) for name, value in values.items()})

    def _read(self, found: Mapping[str, _Found]) -> tuple[tuple[str, str], ...]:
        return tuple((name, self._told(f)) for name, f in sorted(found.items()) if not _NOT_CONSTANTS.fullmatch(name))

    def _told(self, found: _Found) -> str:
        """The token of a value and, where it hides what is in there, how the module makes it."""
        if (id(found.namespace), found.name) in self._values.changed:
            return "state"
        before = self._values.hidden
        token = self._values.token(found.value)
        if not self._thorough or found.namespace is None or self._values.hidden == before:
            return token
        key = id(found.namespace), found.name
        if key not in self._origins:
            self._origins[key] = origin(found.namespace, found.name)
        made = self._origins[key]
        if made is None:
            return f"{token} {contents(found.value)}"
        content = contents(found.value) if made.reads_files else ""
        return f"{token} {content} made by {self._refer(made)}"

    def _bytecode(self, code: CodeType) -> str:
        constants = [self._bytecode(c) if isinstance(c, CodeType) else self._values.token(c) for c in code.co_consts]
        names = (code.co_name, code.co_argcount, code.co_kwonlyargcount, code.co_names, code.co_varnames)
        return f"{names!a} {code.co_code.hex()} {constants!a}"

    def _resolved(self, names: References, scope: ChainMap[str, Any]) -> dict[str, _Found]:
        """Dotted name to what it stands for; names that nothing binds are left out."""
        found: dict[str, _Found] = {}
        for path in names.paths:
            name = path[0]
            if name in names.assigned:
                found[name] = _Found(Token("state"))
            elif name in names.imports:
                found[".".join(path)] = self._imported(names.imports[name], path[1:], scope)
            elif name in scope:
                held = _Found(scope[name], namespace(scope, name), name)
                found[".".join(path)] = self._attribute(held, path[1:])
        return found

    def _attribute(self, found: _Found, names: Sequence[str]) -> _Found:
        """What a dotted name stands for: attributes are followed as long as they are taken from the user's modules."""
        while issubclass(type(module := found.value), ModuleType) and names:
            if not self._is_own(module_name(module), module_file(module)):
                return _Found(Token(f"library {'.'.join((module_name(module), *names))}"))
            value = tried(getattr, module, names[0], MISSING, otherwise=MISSING)
            found, names = _Found(value, own_attributes(module), names[0]), names[1:]
        return found

    def _imported(self, statement: Import, names: Sequence[str], scope: Mapping[str, Any]) -> _Found:
        try:
            name = importlib.util.resolve_name("." * statement.level + statement.loads, scope.get("__package__"))
            spec = importlib.util.find_spec(name.partition(".")[0])
            file = spec.origin or next(iter(spec.submodule_search_locations or ()), "") if spec else ""
            if not self._is_own(name, file):
                return _Found(Token(f"library {'.'.join((name, statement.attribute, *names))}"))
            module = import_module(name)
            if not statement.attribute:
                return self._attribute(
                    _Found(module if statement.module == statement.loads else sys.modules[statement.module]), names
                )
            if not hasattr(module, statement.attribute):
                import_module(f"{name}.{statement.attribute}")
        except KeyboardInterrupt:
            raise
        except BaseException:  # an import runs the user's module, which may skip a test; the kernel will do it too
            return _Found(MISSING)
        return self._attribute(_Found(module), (statement.attribute, *names))

    def _refer(self, thing: Any) -> str:
        if id(thing) not in self._index:
            if len(self._reached) >= (_THOROUGH_LIMIT if self._thorough else _UNIT_LIMIT):
                if not self._thorough:
                    return "too far"
                raise UsageError(
                    f"a kernel reaches more than {_THOROUGH_LIMIT} functions and objects, so that nothing can tell it"
                    " from another: let its functions read less than whole data structures of objects"
                )
            self._index[id(thing)] = len(self._reached)
            self._reached.append((thing, self._values.folder))
        return f"#{self._index[id(thing)]}"

    def _is_own(self, module: str, file: str) -> bool:
        if is_library(module, file):
            return module.partition(".")[0] in self._packages and len(self._reached) < _LIBRARY_LIMIT
        return True
