"""What is put around the stages of Triton's compiler: checks before the slowest one, and a store of their results.

Configs often differ in nothing that reaches the machine code: a parameter that the grid alone reads, a num_stages where
no loop is pipelined. Triton compiles each of them from its source on; here LLVM IR that was seen before, in any process
and any run, gives the PTX and the machine code that it gave then.

A stage is shared only where all that it reads is known. It sees its input and the compile options, but neither those
that differ between configs and are already part of the input, nor what earlier stages noted: where it asks for these,
it is run as Triton would run it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from pytest_kerneltune.backends.claims import claimed
from pytest_kerneltune.backends.code_store import CodeStore, Entry

Stage: TypeAlias = Callable[[Any, dict[str, Any]], Any]
"""A compiler stage: from its input and the metadata, which it may change, to the next stage's input."""

_LLVM_IR = "llir"
_SHARED = frozenset({"ptx", "cubin"})
_IN_THE_INPUT = frozenset({"num_warps", "num_stages"})  # options whose part in the machine code the LLVM IR says
_TOOL = "env_nvidia_tool"  # a setting that is run when it is read; the only one that matters is in the backend's hash


class NotShared(Exception):
    """A stage reads something that the key of its result does not cover."""


@contextlib.contextmanager
def wrapped_stages(backend: type, check: Callable[[Mapping[str, Any]], None], store: CodeStore) -> Iterator[None]:
    """In the body, ``check`` sees the metadata once the LLVM IR is made, and may raise; results are kept in ``store``.

    ``backend`` is the class of a Triton compiler backend; what it has no stages for is left alone.
    """
    original = backend.add_stages  # type: ignore[attr-defined]

    def add_stages(self: Any, stages: dict[str, Stage], options: Any, *rest: Any) -> None:
        original(self, stages, options, *rest)
        if stages.keys() & _SHARED and not _replaced_by_hooks():
            shareable: dict[str, Stage] = {}
            with contextlib.suppress(Exception):  # whatever these are not enough for: nothing is shared then
                original(self, shareable, _Options(options), *rest)
            common = _common(self, options)
            for name in stages.keys() & shareable.keys() & _SHARED:
                stages[name] = _shared(f"{name}\0{common}", stages[name], shareable[name], store)
        if _LLVM_IR in stages:
            stages[_LLVM_IR] = _checked(stages[_LLVM_IR], check)

    backend.add_stages = add_stages  # type: ignore[attr-defined]
    try:
        yield
    finally:
        backend.add_stages = original  # type: ignore[attr-defined]


def _checked(stage: Stage, check: Callable[[Mapping[str, Any]], None]) -> Stage:
    def run(source: Any, metadata: dict[str, Any]) -> Any:
        result = stage(source, metadata)
        check(metadata)
        return result

    return run


def _shared(common: str, stage: Stage, shareable: Stage, store: CodeStore) -> Stage:
    """``stage``, run only where the store does not hold what ``shareable`` made of the same input."""

    def run(source: Any, metadata: dict[str, Any]) -> Any:
        if not isinstance(source, str):
            return stage(source, metadata)
        key = hashlib.sha256(f"{common}\0{source}".encode()).hexdigest()
        entry = store.get(key)
        if entry is None:
            notes = _Notes()
            with claimed(key):
                try:
                    entry = store.get(key) or Entry(shareable(source, notes), dict(notes))
                except NotShared:
                    return stage(source, metadata)
                store.put(key, entry)
        metadata.update(entry.notes)
        return entry.result

    return run


class _Options:
    """Compile options, without those that a shared stage must not read."""

    __slots__ = ("_options",)  # so that __dict__ is asked for like any other attribute

    def __init__(self, options: Any) -> None:
        self._options = options

    def __getattr__(self, name: str) -> Any:
        if name in _IN_THE_INPUT or name == "__dict__":
            raise NotShared(name)
        return getattr(self._options, name)


class _Notes(dict[str, Any]):
    """Metadata in which a stage may read only what it wrote itself."""

    def __missing__(self, key: str) -> Any:
        raise NotShared(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key]

    def __contains__(self, key: object) -> bool:
        raise NotShared(key)


def _common(backend: Any, options: Any) -> str:
    """All that PTX and machine code are made of besides the stage's input."""
    from triton._C import libtriton

    from pytest_kerneltune.backends.toolchain import toolchain_key

    read = {name: value for name, value in vars(options).items() if name not in _IN_THE_INPUT}
    environment = libtriton.get_cache_invalidating_env_vars()
    return json.dumps([toolchain_key(), backend.hash(), read, environment, _knobs()], default=str, sort_keys=True)


def _knobs() -> dict[str, str]:
    """Settings of Triton's compiler (which has them in one place since 3.4)."""
    import triton

    found = {}
    for group in (getattr(getattr(triton, "knobs", None), name, None) for name in ("compilation", "nvidia")):
        for name, kind in getattr(group, "knob_descriptors", {}).items():
            if type(kind).__name__ != _TOOL:
                found[name] = str(getattr(group, name))
    return found


def _replaced_by_hooks() -> bool:
    """Whether somebody puts other stages in the place of Triton's."""
    import triton

    runtime = getattr(getattr(triton, "knobs", None), "runtime", None)
    return getattr(runtime, "add_stages_inspection_hook", None) is not None
