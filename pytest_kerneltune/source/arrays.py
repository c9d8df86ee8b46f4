"""How arrays lie in memory and what is in them, as far as it is the same in every run."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

ALIGNED = 16
"""Bytes: what compilers of kernels specialise on."""

CONTENT_LIMIT = 64 * 1024
"""Bytes of an array that are read to tell it from another."""

_CONTENT_ITEMS = 256
_ADDRESSES = re.compile(r"\bdata_ptr\b|\baddressof\b|\bctypes\.data\b|\bdata\.ptr\b|_interface__\b")


def array_layout(value: Any) -> str:
    """How an array of numpy's, torch's or cupy's lies in memory, as far as that is the same in every run.

    That is its strides where it is not in C order, its place in the array that it is a view of, modulo 16 bytes, and
    whether it is on a device. Where an allocation begins differs from run to run.
    """
    module = type(value).__module__.partition(".")[0]
    if hasattr(type(value), "untyped_storage"):
        return _tensor_layout(value)
    if module not in ("numpy", "cupy") or not hasattr(value, "strides"):
        return ""
    plain = value.flags.c_contiguous
    return ("" if plain else f", strides {value.strides}") + (_offset_in_words(_offset(value)) if value.size else "")


def _tensor_layout(tensor: Any) -> str:
    where = "" if tensor.device.type == "cpu" else f" on {tensor.device.type}"
    try:
        strides = "" if tensor.is_contiguous() else f", strides {tuple(tensor.stride())}"
        return where + strides + _offset_in_words(tensor.storage_offset() * tensor.element_size())
    except (RuntimeError, NotImplementedError):  # a sparse one has neither
        return f"{where}, {tensor.layout}"


def _offset(array: Any) -> int:
    owner = array
    while type(owner.base) is type(array):
        owner = owner.base
    address = [
        a.__array_interface__["data"][0] if hasattr(a, "__array_interface__") else a.data.ptr for a in (array, owner)
    ]
    return int(address[0] - address[1])


def _offset_in_words(offset: int) -> str:
    return f", {offset % ALIGNED} bytes past a multiple of {ALIGNED}" if offset % ALIGNED else ""


def aliases(arguments: Sequence[Any]) -> list[str]:
    """A line on each array that is passed again: a kernel that reads what it writes is another one."""
    first: dict[int, int] = {}
    arrays = [(i, value) for i, value in enumerate(arguments) if getattr(value, "shape", ()) != ()]
    return [f"arg {i} is arg {first[id(v)]}" for i, v in arrays if first.setdefault(id(v), i) != i]


def contents(value: Any) -> str:
    """A digest of what is in an array of the host of at most ``CONTENT_LIMIT`` bytes; "" for everything else.

    Of a list, tuple or dictionary those of its items.
    """
    if type(value) in (list, tuple, dict):
        items = list(value.values()) if isinstance(value, dict) else value
        return " ".join(filter(None, map(contents, items[:_CONTENT_ITEMS])))
    tensor = hasattr(type(value), "untyped_storage")
    try:
        if not 0 < value.nbytes <= CONTENT_LIMIT or (tensor and value.device.type != "cpu"):
            return ""
        held = value.detach().contiguous().flatten().view(_torch_bytes(value)).numpy() if tensor else value
        return "" if held.dtype.hasobject else hashlib.sha256(held.tobytes()).hexdigest()
    except Exception:  # sparse, quantized, fake, or no array at all: whatever its library raises
        return ""


def _torch_bytes(tensor: Any) -> Any:
    return sys.modules[type(tensor.dtype).__module__].uint8


@lru_cache(maxsize=128)
def takes_addresses(text: str) -> bool:
    """Whether source text asks for addresses, so that large integers in there may differ from run to run."""
    return _ADDRESSES.search(text) is not None
