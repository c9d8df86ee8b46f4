"""Arguments of a kernel as its compiler sees them: no memory, and no torch to read them with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

_ALIGNMENT = 256  # stand-ins keep addresses modulo this; Triton specialises on multiples of 16


@dataclass(frozen=True)
class DtypeStandIn:
    """An element type by its name ("torch.float16"), which is all that Triton reads of it."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class TensorStandIn:
    """What the JIT reads of a tensor argument."""

    dtype: DtypeStandIn
    address: int
    size: int

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        return self.size


def stand_in(argument: Any) -> Any:
    """``argument`` without its memory: tensors become stand-ins, inside tuples and descriptors too."""
    if isinstance(argument, tuple | list):
        items = [stand_in(item) for item in argument]
        return type(argument)(*items) if hasattr(argument, "_fields") else type(argument)(items)
    if hasattr(argument, "data_ptr"):
        tensor = getattr(argument, "base", argument) if not hasattr(argument, "untyped_storage") else argument
        size = tensor.untyped_storage().nbytes()
        return TensorStandIn(DtypeStandIn(str(argument.dtype)), argument.data_ptr() % _ALIGNMENT, size)
    if hasattr(getattr(argument, "base", None), "data_ptr"):
        return _descriptor(argument)
    return argument


def _descriptor(argument: Any) -> Any:
    described = copy.copy(argument)
    described.base = stand_in(argument.base)
    for name in ("shape", "strides"):  # may be a torch.Size
        if isinstance(sizes := getattr(described, name, None), tuple):
            setattr(described, name, [int(size) for size in sizes])
    return described
