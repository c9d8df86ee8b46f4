"""What a launch wrote besides its outputs: to inputs, beside views, beyond the ends of its memory, or far from it.

All is asked of the device at once, in about one pass over the memory, and waited for once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_kerneltune.backends.guards import GuardedMemory
from pytest_kerneltune.backends.tensors import Snapshot, storage_bytes, tensors_in, words


@dataclass(frozen=True)
class Written:
    """``outside`` says in words what was overwritten that belongs to no argument (None: nothing).

    ``inputs`` are the addresses of the storages in which arguments that are no outputs changed. ``spoilt`` says that
    what was kept of first content and expected results changed, too.
    """

    outside: str | None
    inputs: frozenset[int]
    spoilt: bool = False


class Watch:
    """Compares ``arguments`` with their ``first`` content after a launch.

    ``memories`` are all storages with guard bytes around them in this process, ``kept`` further tensors that no launch
    may change; both are only watched in a worker process, which has them. ``names`` are words for the arguments.
    """

    def __init__(
        self,
        arguments: Sequence[Any],
        names: Sequence[str],
        outputs: Sequence[Any],
        first: Snapshot,
        memories: Sequence[GuardedMemory] = (),
        kept: Iterable[Any] = (),
    ) -> None:
        self._first, self._memories = first, memories
        self._names = _names_of_storages(arguments, names)
        self._inputs: dict[int, Any] = {}
        self._beside: dict[int, Any] = {}
        for address, content in first.live.items():
            inputs, beside = _regions(content, _views(arguments, address), _views(outputs, address))
            self._inputs |= {address: inputs} if inputs is not None else {}
            self._beside |= {address: beside} if beside is not None else {}
        watched = [*first.first.values(), *storage_bytes(kept).values()] if memories else []
        self._kept = [words(content) for content in watched]
        self._sums = _answers([content.sum() for content in self._kept])

    def name(self, address: int) -> str:
        """Words for the argument whose storage is at ``address``."""
        return self._names.get(address, "a tensor that only the reference uses")

    def spoilt(self) -> bool:
        """Whether anything of what no launch may change is not as it was when this was made."""
        return _answers([content.sum() for content in self._kept]) != self._sums

    def written(self) -> Written:
        """What changed since the first content was restored and the guard bytes were filled.

        Waits for the launch: what went wrong in it on the device is raised here.
        """
        questions = [
            *(self._changed(address, region) for address, region in self._inputs.items()),
            *(self._changed(address, region) for address, region in self._beside.items()),
            *(memory.overwritten() for memory in self._memories),
            *(content.sum() for content in self._kept),
        ]
        answers = iter(_answers(questions))
        inputs = frozenset([address for address in self._inputs if next(answers)])
        beside = [address for address in self._beside if next(answers)]
        beyond = [memory for memory in self._memories if next(answers)]
        spoilt = list(answers) != self._sums
        return Written(self._outside(beside, beyond, spoilt), inputs, spoilt)

    def _changed(self, address: int, region: Any) -> Any:
        live, first = self._first.live[address], self._first.first[address]
        if region is _ALL:
            return (words(live) != words(first)).any()
        return ((live != first) & region).any()

    def _outside(self, beside: Sequence[int], beyond: Sequence[GuardedMemory], spoilt: bool) -> str | None:
        import torch

        if beyond:
            memory = beyond[0]
            return f"overwrites memory outside {self.name(memory.storage.data_ptr())}: {memory.damage()}"
        if beside:
            (address, *_) = beside
            live, first = self._first.live[address], self._first.first[address]
            wrong = (live != first) & self._beside[address]
            start = int(wrong.to(torch.uint8).argmax())  # nonzero is not for as many bytes as a storage may have
            place = f"{int(wrong.sum())} bytes from byte {start} of the storage that it is a view of"
            return f"overwrites memory outside {self.name(address)}: {place} (pass all of it if that is the kernel's)"
        return "overwrites memory far from its arguments" if spoilt else None


_ALL = object()
"""The region of a storage that is all of it."""


def _regions(content: Any, arguments: Sequence[Any], outputs: Sequence[Any]) -> tuple[Any, Any]:
    """The bytes of a storage that belong to inputs, and those that belong to no argument: masks, _ALL, or None."""
    if any(fills(view, content) for view in outputs):
        return None, None
    if not outputs and any(fills(view, content) for view in arguments):
        return _ALL, None
    beside = _uncovered(content, [*arguments, *outputs])
    inputs = _uncovered(content, outputs) & ~beside
    return _region(inputs), _region(beside)


def fills(view: Any, content: Any) -> bool:
    """Whether every byte of a storage's ``content`` is one of ``view``'s, as it nearly always is: no mask is needed."""
    order = sorted(range(view.dim()), key=lambda i: -view.stride(i))
    whole = view.numel() * view.element_size() == content.numel()
    return bool(whole and view.permute(order).is_contiguous())


def _region(mask: Any) -> Any:
    if not bool(mask.any()):
        return None
    return _ALL if bool(mask.all()) else mask


def _uncovered(content: Any, views: Iterable[Any]) -> Any:
    import torch

    mask = torch.ones_like(content, dtype=torch.bool)
    for view in views:
        size = view.element_size()
        shape = [1 if step == 0 else n for n, step in zip(view.shape, view.stride(), strict=True)]
        steps = [step * size for step in view.stride()]
        mask.as_strided((*shape, size), (*steps, 1), view.storage_offset() * size).zero_()
    return mask


def _views(arguments: Iterable[Any], address: int) -> list[Any]:
    return [t for t in tensors_in(arguments) if t.numel() and t.untyped_storage().data_ptr() == address]


def _names_of_storages(arguments: Sequence[Any], names: Sequence[str]) -> Mapping[int, str]:
    found: dict[int, str] = {}
    for argument, name in zip(arguments, names, strict=True):
        for tensor in tensors_in([argument]):
            found.setdefault(tensor.untyped_storage().data_ptr(), name)
    return found


def _answers(questions: Sequence[Any]) -> list[int]:
    """The values of tensors of one element, each device asked once."""
    import torch

    devices = dict.fromkeys(question.device for question in questions)
    mine = {d: [i for i, question in enumerate(questions) if question.device == d] for d in devices}
    found = [0] * len(questions)
    for places in mine.values():
        values = torch.stack([questions[i].to(torch.int64) for i in places]).tolist()
        for i, value in zip(places, values, strict=True):
            found[i] = value
    return found
