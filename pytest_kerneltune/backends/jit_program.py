"""Programs that launch what Triton compiled ahead: from the same cache, in another process."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_kerneltune.backends.jit_source import jit_reducers
from pytest_kerneltune.backends.tensor_program import TensorProgram
from pytest_kerneltune.backends.toolchain import cache_directory, provide_memory, use_cache_directory
from pytest_kerneltune.packing import travels_by_value


def _by_value(module: str) -> bool:
    return travels_by_value(sys.modules.get(module))


class JitProgram(TensorProgram):
    """A TensorProgram that takes Triton's cache directory along; a subclass says what is launched."""

    def packed_for_launch(self, by_value: Sequence[Any]) -> bytes:
        """The program as bytes (see ``packed``); JIT functions travel by name, those of ``by_value``, of __main__ and
        of modules that travel by value anyway as source."""
        chosen = {getattr(module, "__name__", module) for module in by_value} | {"__main__"}
        return self.packed(by_value, jit_reducers(lambda module: module not in chosen and not _by_value(module)))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_cache_directory": cache_directory()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(state)
        use_cache_directory(state["_cache_directory"])
        if (tensor := next(iter(self._tensors()), None)) is not None:
            provide_memory(tensor.device)
