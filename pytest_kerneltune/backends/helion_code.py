"""What a module that Helion generated will launch, found without a launch, and compiled ahead.

The host function of such a module takes the function that launches, as ``_launcher``. Running it on fake tensors, with
a launcher that only takes notes, tells what will be launched with which arguments and options; each of these launches
is compiled as any Triton kernel is (``jit.py``). Where the host function needs the content of its arguments nothing is
compiled ahead, and the first launch compiles.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from pytest_kerneltune.backends import Build
from pytest_kerneltune.backends.helion_module import loaded
from pytest_kerneltune.backends.jit import Compiler
from pytest_kerneltune.backends.jit_source import jit_reducers
from pytest_kerneltune.backends.stand_in import DtypeStandIn, TensorStandIn
from pytest_kerneltune.backends.tensors import tensors_in
from pytest_kerneltune.backends.toolchain import Target
from pytest_kerneltune.packing import travels_by_value

_ALIGNMENT = 256  # stand-ins keep addresses modulo this; torch's allocator aligns to no less
_NOT_FOR_COMPILERS = ("helion", "torch")  # packages that take seconds to import


@dataclass(frozen=True)
class Launch:
    """A launch of a JIT function: ``packed`` with its arguments for a Compiler; ``arguments`` in words."""

    packed: bytes
    arguments: str
    grid: tuple[int, ...]
    keywords: Mapping[str, Any]


def launches(source: str, host: str, args: Sequence[Any]) -> tuple[Launch, ...]:
    """What the function ``host`` of a generated module launches for ``args``, whose content is not read.

    Nothing where it needs that content, or does what fake tensors do not allow.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    function = getattr(loaded(source), host)
    launch = inspect.signature(function).parameters["_launcher"].default
    notes: list[Launch] = []
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [_faked(mode, argument) for argument in args]
    pairs = zip(tensors_in(args), tensors_in(fakes), strict=True)
    addresses = {_storage(fake): real.untyped_storage().data_ptr() for real, fake in pairs}
    try:
        with mode:
            function(*fakes, _launcher=partial(_noted, launch, notes, addresses))
    except Exception:  # whatever the host function or a fake tensor raises
        return ()
    return tuple(notes)


class HelionCompiler:
    """Compiles what generated modules launch into Triton's cache; lives in a compile worker."""

    def __init__(self, target: Target, cache_dir: str) -> None:
        self._target, self._cache_dir = target, cache_dir

    def compile(self, source: str, host: str, noted: Sequence[Launch]) -> Build:
        """The generated module, with what is known of its compiled launches; raises what ``jit.Compiler`` does."""
        builds: list[Build] = []
        for launch in noted:
            compiler = Compiler(launch.packed, self._target, self._cache_dir)
            builds.append(compiler.compile(launch.keywords, launch.grid))
            if builds[-1].refused:
                return builds[-1]
        names = {name for build in builds for name in build.usage}
        return Build(
            artifact={"source": source, "host": host},
            code=_digest(builds, noted),
            usage={name: max(build.usage.get(name, 0) for build in builds) for name in sorted(names)},
            demand=max((build.demand for build in builds), default=0.0),
        )


def _digest(builds: Sequence[Build], noted: Sequence[Launch]) -> str:
    """Of the code of all launches and what is handed to them; "" where that is not known."""
    if not builds or not all(build.code for build in builds):
        return ""
    parts = [(build.code, launch.arguments) for build, launch in zip(builds, noted, strict=True)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class _Noting:
    """Stands for a JIT function in the generated module's launcher, and notes how it would be run."""

    def __init__(self, function: Any, notes: list[Launch], addresses: Mapping[int, int]) -> None:
        self._function, self._notes, self._addresses = function, notes, addresses

    def run(self, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        if warmup:
            raise NotImplementedError("a launch that asks for the compiled kernel first")
        stand_ins = tuple(_stand_in(argument, self._addresses) for argument in args)
        packed = _packed(self._function, stand_ins)
        self._notes.append(Launch(packed, repr(stand_ins), tuple(grid), keywords))


def _noted(
    launch: Callable[..., Any],
    notes: list[Launch],
    addresses: Mapping[int, int],
    function: Any,
    *args: Any,
    **keywords: Any,
) -> None:
    launch(_Noting(function, notes, addresses), *args, **keywords)


def _packed(function: Any, args: tuple[Any, ...]) -> bytes:
    """A JIT function and its arguments for a compile worker, which need not import torch or helion to unpack them."""
    from pytest_kerneltune.packing import pack

    reducers = dict(jit_reducers(lambda module: module.partition(".")[0] == "triton"))
    names = function.fn.__code__.co_names
    return pack((function, args, {}), (), {**reducers, ModuleType: partial(_reduced_module, names)})


def _reduced_module(names: Sequence[str], module: ModuleType) -> Any:
    """A module by name; one that would be slow to import as a module of those things that a kernel may name."""
    if module.__name__.partition(".")[0] not in _NOT_FOR_COMPILERS and not travels_by_value(module):
        return import_module, (module.__name__,)
    return ModuleType, (module.__name__,), {name: getattr(module, name) for name in names if hasattr(module, name)}


def _faked(mode: Any, argument: Any) -> Any:
    import torch

    if isinstance(argument, torch.Tensor):
        return mode.from_tensor(argument)
    if isinstance(argument, tuple | list):
        return type(argument)(_faked(mode, item) for item in argument)
    return argument


def _storage(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)


def _stand_in(argument: Any, addresses: Mapping[int, int]) -> Any:
    """A fake argument as its compiler sees it; tensors that the host function makes begin at an aligned address."""
    import torch

    if isinstance(argument, torch.Tensor):
        address = addresses.get(_storage(argument), 0) + argument.storage_offset() * argument.element_size()
        size = argument.untyped_storage().nbytes()
        return TensorStandIn(DtypeStandIn(str(argument.dtype)), address % _ALIGNMENT, size)
    if isinstance(argument, tuple | list):
        return type(argument)(_stand_in(item, addresses) for item in argument)
    return _descriptor(argument, addresses) if hasattr(argument, "base") else argument


def _descriptor(argument: Any, addresses: Mapping[int, int]) -> Any:
    described = copy.copy(argument)
    described.base = _stand_in(argument.base, addresses)
    for name in ("shape", "strides"):  # may be a torch.Size
        setattr(described, name, [int(size) for size in getattr(argument, name)])
    return described
