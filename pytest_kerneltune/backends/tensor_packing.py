"""Programs on torch tensors as bytes, which are unpacked on memory with guard bytes around it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pytest_kerneltune.backends.guards import GuardedMemory
from pytest_kerneltune.backends.tensors import storage_bytes
from pytest_kerneltune.packing import Reducers, pack


class Guarded(Protocol):
    """A program that wants to know the memory that it was given in its worker."""

    def settle(self, memories: Sequence[GuardedMemory], used: Sequence[int]) -> None:
        """``memories`` are all storages behind the tensors it refers to; for ``used`` see ``packed``."""


def packed(
    program: Guarded,
    tensors: Sequence[Any],
    reference: Callable[[], Any] | None,
    by_value: Sequence[Any],
    reducers: Reducers,
) -> bytes:
    """``program`` as bytes for ``packing.unpack``, which calls its ``settle``.

    It is told the places of those ``tensors`` whose memory ``reference`` refers to. ``reducers`` are asked about
    objects that are no tensors. Raises KernelError as ``packing.pack`` does.
    """
    import torch

    addresses: set[int] = set()
    pack(reference, by_value, {**reducers, torch.Tensor: partial(_noted, addresses)})
    used = [i for i, tensor in enumerate(tensors) if tensor.untyped_storage().data_ptr() in addresses]
    reducer = TensorReducer()
    # Arguments are pickled in their order: the storages are known once the program is.
    parcel = _Parcel((_settled, (program, reducer.memories, used)))
    return pack(parcel, by_value, {**reducers, torch.Tensor: reducer})


@dataclass(frozen=True)
class _Parcel:
    """Is unpacked as what a function makes of its arguments."""

    reduced: tuple[Callable[..., Any], tuple[Any, ...]]

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def _settled(program: Guarded, memories: Sequence[GuardedMemory], used: Sequence[int]) -> Guarded:
    program.settle(memories, used)
    return program


def _noted(addresses: set[int], tensor: Any) -> tuple[Any, ...]:
    """Reduces ``tensor`` to nothing and keeps its storage's address."""
    import torch

    if tensor.layout is torch.strided:
        addresses.add(tensor.untyped_storage().data_ptr())
    return int, ()


class _Storage:
    """The bytes behind some tensors of one pickle, sent once; ``number`` counts them."""

    def __init__(self, content: Any, number: int) -> None:
        self._content, self._number = content, number

    def __reduce__(self) -> tuple[Any, ...]:
        return GuardedMemory, (self._content.cpu().numpy(), str(self._content.device), self._number)


class TensorReducer:
    """A reducer of torch.Tensor for one pickle: tensors that share memory share it where they are unpacked, too.

    (torch's own reducer gives every view a storage of its own.) ``memories``, pickled after them, is unpacked as the
    list of their GuardedMemory.
    """

    def __init__(self) -> None:
        self._storages: dict[tuple[str, int], _Storage] = {}
        self.memories = _Memories(self._storages)

    def __call__(self, tensor: Any) -> tuple[Any, ...]:
        import torch

        odd = tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta
        if odd or tensor.is_conj() or tensor.is_neg() or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            plain: tuple[Any, ...] = tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            return plain
        ((address, content),) = storage_bytes([tensor]).items()
        place = (str(tensor.device), address)  # empty ones are at address 0 of every device
        storage = self._storages.setdefault(place, _Storage(content, len(self._storages)))
        view: Sequence[Any] = (tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        return _load_tensor, (storage, *view, tensor.requires_grad, type(tensor))


class _Memories:
    """All storages of one pickle, listed when this is pickled."""

    def __init__(self, storages: Mapping[tuple[str, int], _Storage]) -> None:
        self._storages = storages

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self._storages.values()),)


def _load_tensor(
    memory: GuardedMemory, dtype: Any, offset: int, shape: Any, stride: Any, requires_grad: bool, kind: type
) -> Any:
    import torch

    placed = memory.placed(dtype, offset, shape, stride)
    loaded = placed.requires_grad_(requires_grad) if kind is torch.Tensor else kind(placed, requires_grad)
    memory.tensors.append(loaded)
    return loaded
