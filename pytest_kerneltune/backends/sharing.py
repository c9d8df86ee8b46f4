"""Two programs' tensors in one memory: which storages correspond to each other, and what becomes of their content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_kerneltune.backends.guards import GuardedMemory
from pytest_kerneltune.backends.tensors import Snapshot, words


def counterparts(
    mine: Sequence[Any],
    my_memories: Sequence[GuardedMemory],
    theirs: Sequence[Any],
    their_memories: Sequence[GuardedMemory],
) -> list[tuple[GuardedMemory, GuardedMemory]]:
    """The memories behind the tensors ``mine``, each with the one behind the tensor of ``theirs`` at the same place.

    Nothing where tensors differ in layout, or in which of them share memory, or lie in memory without guard bytes.
    """
    if [_layout(tensor) for tensor in mine] != [_layout(tensor) for tensor in theirs]:
        return []
    behind_mine, behind_theirs = _behind(mine, my_memories), _behind(theirs, their_memories)
    pairs = list(dict.fromkeys(zip(behind_mine, behind_theirs, strict=True)))
    one_to_one = len(set(behind_mine)) == len(pairs) == len(set(behind_theirs))
    if not one_to_one or None in behind_mine or None in behind_theirs:
        return []
    return [(my_memories[i], their_memories[k]) for i, k in pairs if i is not None and k is not None]


def moved(pairs: Sequence[tuple[GuardedMemory, GuardedMemory]], kept: Snapshot) -> dict[int, Any]:
    """Move what lies in the first memory of each pair to the second one, whose own first content is in ``kept``.

    Returns what was in the first one, by the address of the second: the very tensor in ``kept`` where that is equal.
    The content of the second one stays as it is.
    """
    first: dict[int, Any] = {}
    for mine, theirs in pairs:
        address = theirs.storage.data_ptr()
        same = bool((words(kept.first[address]) == words(mine.inside)).all())
        first[address] = kept.first[address] if same else mine.inside.clone()
        mine.move_to(theirs)
    return first


def _layout(tensor: Any) -> tuple[Any, ...]:
    size = tensor.untyped_storage().nbytes()
    return (tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), size)


def _behind(tensors: Sequence[Any], memories: Sequence[GuardedMemory]) -> list[int | None]:
    """The place in ``memories`` of each tensor's; None where it is not there."""
    places = {memory.storage.data_ptr(): i for i, memory in enumerate(memories)}
    return [places.get(tensor.untyped_storage().data_ptr()) for tensor in tensors]
