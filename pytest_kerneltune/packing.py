"""Objects as bytes that a fresh process of the same Python can load: closures, arrays and tensors included.

Rules:
1. Functions and classes travel by reference (module and name), except those of ``__main__``, of the modules that the
   caller names and of no importable module, which travel by value. The importing side gets our ``sys.path``.
2. Arrays and tensors travel by value. An object stays one object wherever it is reached, and a numpy array keeps its
   strides and its address modulo a cache line, which are part of what is timed.
3. A pytest request travels as a namespace with its ``param``, since kernels say ``request.param`` in lambdas.
4. In a process that said so (``travel_by_value``) all modules below a folder travel by value, as objects too, so that
   the receiving process may have other modules of their names. Of such a module, what cannot travel is left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import dis
import functools
import importlib.util
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, TypeAlias

from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.source.introspection import attributes, code_names, function_scope, is_fixture_request

Reducers: TypeAlias = Mapping[type, Callable[[Any], Any]]
"""Type to a function that returns what ``__reduce__`` would."""

_LINE = 64
_DEPTH = 8
_OF_THE_IMPORT = ("__builtins__", "__cached__", "__loader__", "__spec__")  # of a module, and no part of its content
_DYNAMIC_IMPORTS = frozenset(("import_module", "__import__"))
_CACHED = type(functools.lru_cache(len))
_registry = threading.Lock()
_folders: set[Path] = set()
_Dropped: TypeAlias = frozenset[tuple[str, str]]  # names of modules, and names in them


def travel_by_value(folder: Path) -> None:
    """From now on every ``pack`` of this process sends all modules below ``folder`` by value.

    ``folder`` is absolute, without symbolic links. It is left out of the ``sys.path`` that the importing side gets.
    """
    _folders.add(folder)


def travels_by_value(module: ModuleType | None) -> bool:
    """Whether ``travel_by_value`` was said of a folder that holds ``module``."""
    return bool(_folders) and isinstance(module, ModuleType) and _is_below(_file(module))


def _file(module: ModuleType) -> str:
    """As ``module_file``, but asks no module that makes up its attributes."""
    known = vars(module)
    return known.get("__file__") or next(iter(known.get("__path__") or ()), "")


def _is_below(file: str) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in _folders)


def pack(obj: Any, by_value: Sequence[ModuleType] = (), reducers: Reducers | None = None) -> bytes:
    """``obj`` as bytes for :func:`unpack`.

    Functions and classes of the modules in ``by_value`` travel by value; ``reducers`` are asked about objects of their
    types first. Raises KernelError that names what cannot travel and where it was found.
    """
    reducers = reducers or {}
    with _registered(by_value):
        try:
            return _dumps(obj, reducers)
        except Exception as error:  # an object's own reduction may raise anything
            failure = error
        if dropped := _unsendable(reducers):
            try:
                return _dumps(obj, reducers, dropped)
            except Exception as error:
                failure = error
        raise _refusal(obj, reducers, failure) from failure


def _refusal(obj: Any, reducers: Reducers, failure: Exception) -> KernelError:
    """What to say of ``obj``, whose packing raised ``failure``."""
    if isinstance(failure, KernelError):  # it says what to do
        return KernelError(str(failure))
    where, culprit = _culprit(obj, reducers)
    return KernelError(
        f"the kernel cannot be sent to its worker process, because {where} is a "
        f"{type(culprit).__module__}.{type(culprit).__qualname__} ({type(failure).__name__}: {failure}). Make it "
        "inside the function that uses it, or keep it out of what the kernel's functions and arguments refer to"
    )


def unpack(data: bytes) -> Any:
    """What :func:`pack` packed; modules that are missing here are imported from where the packing process found them.

    Only for bytes that this package packed: unpickling runs what they say. Raises KernelError where a module or a name
    in it is not found.
    """
    file = io.BytesIO(data)
    sys.path[:0] = [entry for entry in pickle.load(file) if entry not in sys.path]
    try:
        return pickle.load(file)
    except (ImportError, AttributeError) as error:
        raise KernelError(
            f"a worker process cannot load the kernel: {type(error).__name__}: {error}. What a kernel refers to must "
            "be importable by name, or be defined in the test file or its conftest.py"
        ) from error


@contextlib.contextmanager
def _registered(modules: Sequence[ModuleType]) -> Iterator[None]:
    """Has functions of ``modules`` pickled by value; those of modules that are not in sys.modules always are."""
    import cloudpickle

    with _registry:
        known = cloudpickle.list_registry_pickle_by_value()
        below = [m for m in list(sys.modules.values()) if travels_by_value(m)] if _folders else []
        new = [m for m in dict.fromkeys([*modules, *below]) if m.__name__ in sys.modules and m.__name__ not in known]
        for module in new:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in new:
                cloudpickle.unregister_pickle_by_value(module)


def _dumps(obj: Any, reducers: Reducers, dropped: _Dropped = frozenset()) -> bytes:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            for kind in type(obj).__mro__:
                if kind in reducers:
                    return reducers[kind](obj)
            if is_fixture_request(obj):
                return SimpleNamespace, (), {"param": getattr(obj, "param", None)}
            if type(obj).__module__ == "numpy" and type(obj).__name__ == "ndarray" and not obj.dtype.hasobject:
                return _reduce_array(obj)
            if _folders and (reduced := _reduce_by_value(obj, dropped)) is not None:
                return reduced
            return super().reducer_override(obj)

    file = io.BytesIO()
    path = [entry or str(Path.cwd()) for entry in sys.path]
    pickle.dump([entry for entry in path if not _is_below(entry)], file)
    Pickler(file).dump(obj)
    return file.getvalue()


def _reduce_array(array: Any) -> Any:
    start = array.__array_interface__["data"][0]
    steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)] if array.size else []
    low = start + sum(step for step in steps if step < 0)
    high = start + sum(step for step in steps if step > 0) + (array.itemsize if array.size else 0)
    memory = ctypes.string_at(low, high - low)
    return _restore_array, (memory, array.dtype, array.shape, array.strides, start - low, low % _LINE)


def _restore_array(memory: bytes, dtype: Any, shape: Any, strides: Any, offset: int, residue: int) -> Any:
    import numpy as np

    raw = np.empty(len(memory) + _LINE, np.uint8)
    shift = (residue - raw.ctypes.data) % _LINE
    raw[shift : shift + len(memory)] = np.frombuffer(memory, np.uint8)
    return np.ndarray(shape, dtype, raw, shift + offset, strides)


def _reduce_by_value(obj: Any, dropped: _Dropped) -> Any:
    """How an object of a module that travels by value is reduced where that is not cloudpickle's way, else None.

    Raises KernelError for a function that would import such a module where it runs: it would get another one there.
    """
    if isinstance(obj, ModuleType) and travels_by_value(obj):
        name = obj.__name__
        content = {k: v for k, v in vars(obj).items() if k not in _OF_THE_IMPORT and (name, k) not in dropped}
        return ModuleType, (name,), content, None, None, _fill
    if isinstance(obj, _CACHED) and travels_by_value(sys.modules.get(obj.__module__)):
        return _cached, (obj.__wrapped__, obj.cache_parameters())
    if isinstance(obj, FunctionType) and _is_below(obj.__code__.co_filename):
        if _DYNAMIC_IMPORTS & code_names(obj.__code__):
            raise KernelError(f"{obj.__qualname__} imports by a computed name: import at the top of its file")
        names = _imported(obj.__code__, obj.__globals__.get("__package__") or "")
        if name := next((n for n in names if travels_by_value(sys.modules.get(n) or _unloaded(n))), ""):
            raise KernelError(f"{obj.__qualname__} imports {name} when it runs: import it at the top of its file")
    return None


def _fill(module: ModuleType, content: Mapping[str, Any]) -> None:
    vars(module).update(content)


def _cached(function: Any, parameters: Mapping[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _imported(code: CodeType, package: str) -> Iterator[str]:
    """Names of the modules that a function imports when it runs."""
    found = list(dis.get_instructions(code))
    for level, _, statement in zip(found, found[1:], found[2:], strict=False):
        if statement.opname == "IMPORT_NAME":
            name = "." * (level.argval if isinstance(level.argval, int) else 0) + str(statement.argval)
            with contextlib.suppress(ImportError):
                yield importlib.util.resolve_name(name, package)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imported(constant, package)


def _unloaded(name: str) -> ModuleType | None:
    """A stand-in for a module that is not imported yet, with its file; None where there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    stand_in = ModuleType(name)
    stand_in.__file__ = spec.origin if spec is not None and spec.has_location else None
    return stand_in


def _unsendable(reducers: Reducers) -> _Dropped:
    """What cannot travel of the modules that travel by value, looked at one by one."""
    without_modules = {**reducers, ModuleType: lambda _: (str, ())}
    modules = [m for m in list(sys.modules.values()) if travels_by_value(m)]
    found = ((m.__name__, k) for m in modules for k, v in list(vars(m).items()) if _fails(v, without_modules))
    return frozenset(found)


def _culprit(obj: Any, reducers: Reducers) -> tuple[str, Any]:
    """Where the object is that keeps ``obj`` from being pickled, and the object: as deep inside ``obj`` as is found."""
    where, seen = "it", {id(obj)}
    for _ in range(_DEPTH):
        parts = ((w, part) for w, part in _parts(obj) if id(part) not in seen and _fails(part, reducers))
        found = next(parts, None)
        if found is None:
            break
        where, obj = found
        seen.add(id(obj))
    return where, obj


def _fails(obj: Any, reducers: Reducers) -> bool:
    try:
        _dumps(obj, reducers)
    except Exception:  # as in pack
        return True
    return False


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """What pickling ``obj`` would pickle next, with words for where it is."""
    if isinstance(obj, FunctionType):
        scope = function_scope(obj)
        names = sorted(name for name in code_names(obj.__code__) if name in scope)
        yield from ((f"{name!r}, which {obj.__qualname__} uses,", scope[name]) for name in names)
        yield from ((f"a default of {obj.__qualname__}", value) for value in obj.__defaults__ or ())
    elif isinstance(obj, MethodType):
        yield f"the object of the method {obj.__qualname__}", obj.__self__
    elif isinstance(obj, functools.partial):
        yield from _parts((obj.func, *obj.args, *obj.keywords.values()))
    elif isinstance(obj, dict):
        yield from ((f"the value of {key!r}", value) for key, value in obj.items())
    elif isinstance(obj, list | tuple | set | frozenset):
        yield from ((f"an item of a {type(obj).__name__}", item) for item in obj)
    else:
        yield from ((f"{type(obj).__qualname__}.{name}", value) for name, value in attributes(obj).items())
