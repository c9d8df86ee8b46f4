"""What live Python objects are: whose code, where their source is, what their names stand for."""

from __future__ import annotations

import builtins
import functools
import linecache
import sys
import sysconfig
from collections import ChainMap
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

from pytest_kerneltune.errors import UsageError

SCALARS: tuple[Any, ...] = (bool, int, float, complex, str, bytes)
SEQUENCES = (list, tuple, set, frozenset)
MAPPINGS = (dict, MappingProxyType)
_DISPLAY_LIMIT = 200
_WRAPPERS = 20
_PACKAGE = __name__.partition(".")[0]
_FRAMEWORKS = frozenset(("helion", "torch", "triton"))  # followed no further wherever they lie, as in a checkout
_LIBRARY_FOLDERS = frozenset(("site-packages", "dist-packages"))
_WRAPPED = ("__wrapped__", "fn", "py_func", "func")  # functools, Triton and Helion, Numba, cached_property


def unwrapped(value: Any) -> Any:
    """The function or class inside a method, property, partial or a library's wrapper; else ``value`` itself."""
    for _ in range(_WRAPPERS):  # not for ever: an object may claim to wrap itself
        kind = type(value)  # isinstance would ask an object's own class
        if issubclass(kind, ModuleType | type):
            break
        inner: Any
        if issubclass(kind, FunctionType):
            inner = vars(value).get("__wrapped__") if is_library(*defined_in(value)) else None
        elif issubclass(kind, MethodType | staticmethod | classmethod):
            inner = value.__func__
        elif issubclass(kind, property | functools.partial):
            inner = value.fget if issubclass(kind, property) else value.func
        else:
            inner = next((held[k] for held in [own_attributes(value)] for k in _WRAPPED if k in held), None)
        if not callable(inner):
            break
        value = inner
    return value


def tried(function: Callable[..., Any], *arguments: Any, otherwise: Any) -> Any:
    """What ``function`` makes of ``arguments``, where it may run code of the user's; ``otherwise`` where that fails."""
    try:
        return function(*arguments)
    except (KeyboardInterrupt, UsageError):  # what stops a test on purpose is no Exception, and no business of ours
        raise
    except BaseException:
        return otherwise


def module_file(module: ModuleType | None) -> str:
    """Its file, or the folder of a package without one; "" for a built-in or invented module."""
    file = tried(getattr, module, "__file__", None, otherwise=None) or tried(_folder, module, otherwise="")
    return file if isinstance(file, str) else ""


def _folder(module: Any) -> str:
    return next(iter(getattr(module, "__path__", ())), "")


def module_name(module: ModuleType) -> str:
    """Its name as it stands in its namespace; "" where it has none."""
    name = own_attributes(module).get("__name__")
    return name if isinstance(name, str) else ""


def is_library(module: str, file: str = "") -> bool:
    """Whether code of that module and file is the standard library's, an installed package's or this package's."""
    top = module.partition(".")[0]
    if top in _FRAMEWORKS:
        return True
    if top == "__main__" and (not file or file.startswith("<")):
        return False  # of a console or a notebook, whichever program of the library's runs it
    if not file or file.startswith("<"):
        file = module_file(sys.modules.get(module)) or module_file(sys.modules.get(top))
    if top == _PACKAGE or not file:
        return top == _PACKAGE or top in sys.stdlib_module_names
    return _is_library_file(file)


@functools.lru_cache(maxsize=4096)
def _is_library_file(file: str) -> bool:
    path = Path(file).absolute()
    standard = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    return not _LIBRARY_FOLDERS.isdisjoint(path.parts) or any(
        p.is_relative_to(folder)
        for p in (path, path.resolve())
        for folder in (*standard, *(s.resolve() for s in standard))
    )


def defined_in(value: FunctionType | type) -> tuple[str, str]:
    """The module and file of a function or class, as ``is_library`` takes them."""
    if type(value) is FunctionType:  # its __module__ may be that of a function it wraps
        return str(value.__globals__.get("__name__", "")), value.__code__.co_filename
    return str(value.__module__), ""


def folder_of(value: Any) -> str:
    """The absolute folder of the file that defines a function, class or object's class; "" where there is none."""
    kind = value if isinstance(value, FunctionType | type | ModuleType) else type(value)
    if isinstance(kind, FunctionType):
        file = kind.__code__.co_filename
    else:
        file = module_file(kind if isinstance(kind, ModuleType) else sys.modules.get(kind.__module__))
    return str(Path(file).absolute().parent) if file and file[0] != "<" else ""


def file_text(file: str, scope: dict[str, Any]) -> str:
    """The text of a source file, of a zip archive's or of a console's; "" where there is none."""
    linecache.checkcache(file)
    return "".join(linecache.getlines(file, scope))


def module_text(module: ModuleType | None) -> str:
    return file_text(file, own_attributes(module)) if module is not None and (file := module_file(module)) else ""


def data_attributes(thing: type | FunctionType) -> dict[str, Any]:
    """What a class or function holds besides code, private names left out; an Enum's members by value."""
    if issubclass(type(thing), type) and issubclass(thing, Enum):  # type: ignore[arg-type]
        return {name: member._value_ for name, member in thing._member_map_.items()}  # type: ignore[union-attr]
    return {n: v for n, v in vars(thing).items() if n[:1] != "_" and not hasattr(type(v), "__get__")}


def closure(function: FunctionType) -> dict[str, Any]:
    """Free variable to value, without those that are not bound yet."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    found = {}
    for name, cell in cells:
        try:
            found[name] = cell.cell_contents
        except ValueError:  # an empty cell: the function around it has not come that far
            continue
    return found


def function_scope(function: FunctionType) -> ChainMap[str, Any]:
    """What the names of a function stand for, the nearest scope first."""
    return ChainMap(closure(function), function.__globals__, vars(builtins))


def class_methods(cls: type) -> list[FunctionType]:
    """The methods written in the class's own body, those that a decorator generated left out."""
    found = [unwrapped(member) for member in tuple(vars(cls).values())]
    prefix = f"{cls.__qualname__}."
    return [
        f
        for f in found
        if isinstance(f, FunctionType) and f.__qualname__.startswith(prefix) and f.__code__.co_filename[0] != "<"
    ]


def class_scope(cls: type) -> ChainMap[str, Any]:
    """What the names in a class's body and methods stand for, the nearest scope first."""
    methods = class_methods(cls)
    module = sys.modules.get(cls.__module__)
    scopes = [vars(module)] if module is not None else [m.__globals__ for m in methods[:1]]
    return ChainMap(*map(closure, methods), *scopes, vars(builtins))


def is_fixture_request(value: Any) -> bool:
    """Whether ``value`` is what pytest passes as ``request``; pytest is not imported to find out."""
    return any(c.__name__ == "FixtureRequest" and c.__module__.startswith("_pytest") for c in type(value).__mro__)


def attributes(value: object) -> dict[str, Any]:
    """The attributes of an object, of its slots too, by sorted name; its class's own code is not run for it.

    Without what ``functools.cached_property`` keeps there, which depends on what was asked for so far.
    """
    kept = {name for cls in type(value).__mro__ for name, held in vars(cls).items() if type(held) is cached_property}
    found = {name: held for name, held in own_attributes(value).items() if name not in kept}
    for cls in type(value).__mro__:
        for name in _slots(cls):
            mangled = f"_{cls.__name__.lstrip('_')}{name}" if name.startswith("__") and name[-2:] != "__" else name
            try:
                found[name] = vars(cls)[mangled].__get__(value)
            except (AttributeError, KeyError):  # not set, or taken over by the class
                continue
    return {name: found[name] for name in sorted(found, key=str)}


def own_attributes(value: object) -> dict[str, Any]:
    """What ``vars`` gives, without asking a ``__getattribute__`` of the user's; empty where there is nothing."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if isinstance(found, dict) else {}


def _slots(cls: type) -> Iterator[str]:
    slots = vars(cls).get("__slots__", ())
    yield from (n for n in ([slots] if isinstance(slots, str) else slots) if n not in ("__dict__", "__weakref__"))


def code_names(code: CodeType) -> set[str]:
    """Every global, attribute and free variable that a code object and those inside it name."""
    nested = (code_names(c) for c in code.co_consts if isinstance(c, CodeType))
    return {*code.co_names, *code.co_freevars}.union(*nested)


def library_name(value: object) -> str:
    """How somebody else's object counts: by its qualified name, or by its type's where it has none."""
    named = value if isinstance(getattr(value, "__name__", None), str) else type(value)
    name = getattr(named, "__qualname__", None) or getattr(named, "__name__", "")
    return f"library {getattr(named, '__module__', None) or ''}.{name}"


def is_named(value: Any) -> bool:
    """Whether a function or class of somebody else's is what its qualified name stands for."""
    held = sys.modules.get(str(getattr(value, "__module__", "")))
    for name in value.__qualname__.split("."):
        held = vars(held).get(name) if held is not None and hasattr(held, "__dict__") else None
    return held is value


def described(value: Any) -> str:
    """An array by type, dtype and shape, a dtype or device by name; "" for everything else.

    A device's index is left out: a second GPU of one kind is the same device.
    """
    return str(tried(_described, value, otherwise=""))


def _described(value: Any) -> str:
    kind = type(value).__name__
    foreign = is_library(*defined_in(type(value)))
    if foreign and kind.lower().endswith("dtype"):
        return str(value)
    if foreign and kind == "device":
        return f"device {str(value).partition(':')[0]}"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(value, type) or shape is None or not issubclass(type(shape), tuple) or dtype is None:
        return ""
    named = str(dtype) if is_library(*defined_in(type(dtype))) else type(dtype).__qualname__
    return f"{named} {value.item()!r}" if is_numeric(value) else f"{named} {kind} of shape {tuple(map(int, shape))}"


def is_numeric(value: Any) -> bool:
    """Whether it is a number of numpy's, or a dtype or device: what ``described`` says all of."""
    kind = type(value)
    if kind.__module__ == "numpy" and kind.__name__ != "ndarray":
        return getattr(value, "shape", ()) == ()
    return kind.__name__ == "device" or kind.__name__.lower().endswith("dtype")


def display(value: Any) -> str:
    """A constant as a prompt shows it; "" where it is no constant."""
    if type(value).__name__ == "constexpr":
        value = getattr(value, "value", None)
    try:
        if is_constant(value):
            text = _spelled(value)
            return text if len(text) <= _DISPLAY_LIMIT else text[:_DISPLAY_LIMIT] + "..."
    except Exception:  # a container of the user's own, or one that holds itself
        return ""
    return "" if issubclass(type(value), ModuleType) else described(value)


def _spelled(value: Any) -> str:
    """``repr``, with the items of a set in order: a set's own differs from process to process."""
    if isinstance(value, set | frozenset) and value:
        items = f"{{{', '.join(sorted(map(_spelled, value)))}}}"
        return items if type(value) is set else f"{type(value).__name__}({items})"
    return repr(value)


def is_constant(value: Any) -> bool:
    """Whether it is a number, a string or a container of such."""
    kind = type(value)
    if issubclass(kind, MAPPINGS):
        return all(is_constant(k) and is_constant(v) for k, v in value.items())
    return issubclass(kind, SCALARS) or (issubclass(kind, SEQUENCES) and all(map(is_constant, value)))
