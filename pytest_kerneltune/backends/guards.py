"""Memory with guard bytes around it, which tell when a kernel writes outside what it was given."""

from __future__ import annotations

from typing import Any

_LEAST, _USUAL, _MOST = 1 << 12, 1 << 20, 1 << 25  # bytes on either side
_SHARE = 64  # of a GPU's free memory, for one side of one storage
_WORD = 8  # bytes
_PATTERNS = range(0xFB, 0xEB, -1)
"""Guard bytes. All make a finite, large number of every floating type: what a kernel reads there and uses shows in its
output, what it multiplies by zero does not. Storages get different ones, since a kernel may copy beyond the ends."""


class GuardedMemory:
    """The bytes ``content`` (a flat numpy array, kept) in a storage on ``device``, and guard bytes around it.

    The storage is aligned as torch aligns storages, and as long as ``content``. ``number`` picks the guard bytes.
    ``tensors`` are all that lie in it, but for views made of them later.
    """

    def __init__(self, content: Any, device: str, number: int) -> None:
        import torch

        device = _present(device)
        margin = _margin(content.nbytes, device)
        # From a tensor of torch's own: numpy's memory is aligned to 16 bytes at best, torch's to 64 or 512 (CUDA).
        whole = torch.empty(content.nbytes + 2 * margin, dtype=torch.uint8, device=device)
        self.storage = whole.untyped_storage()[margin : margin + content.nbytes]
        self._before, self._inside, self._after = whole.split([margin, content.nbytes, margin])
        self._content, self._pattern = content, _PATTERNS[number % len(_PATTERNS)]
        self.tensors: list[Any] = []
        self.reload()

    @property
    def inside(self) -> Any:
        """The bytes as they are, a flat tensor."""
        return self._inside

    def placed(self, dtype: Any, offset: int, shape: Any, stride: Any) -> Any:
        """A tensor in this memory; ``offset`` counts elements. What is to stay in it goes into ``tensors``."""
        import torch

        return torch.empty(0, dtype=dtype, device=self.storage.device).set_(self.storage, offset, shape, stride)

    def move_to(self, other: GuardedMemory) -> None:
        """Have all ``tensors`` lie in the memory of ``other``, which is as long and on the same device, from now on.

        ``reload`` then brings what was first in this memory to that one.
        """
        self.storage, self._pattern = other.storage, other._pattern
        self._before, self._inside, self._after = other._before, other._inside, other._after
        for tensor in self.tensors:
            tensor.data = self.placed(tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())

    def reload(self) -> None:
        """Bring the content back, and the guard bytes."""
        import torch

        self._inside.copy_(torch.from_numpy(self._content))
        self.fill()

    def fill(self) -> None:
        """Write the guard bytes anew."""
        self._before.fill_(self._pattern)
        self._after.fill_(self._pattern)

    def overwritten(self) -> Any:
        """Whether any guard byte was written, as a tensor of one bool on the device (nothing waits for it here)."""
        before, after = (part != pattern for part, pattern in map(self._widest, (self._before, self._after)))
        return before.any() | after.any()

    def _widest(self, guard: Any) -> tuple[Any, int]:
        """Guard bytes as the widest integers that they make, which are read faster, and what each must be."""
        import torch

        if guard.storage_offset() % _WORD or len(guard) % _WORD:
            return guard, self._pattern
        return guard.view(torch.int64), int.from_bytes(bytes([self._pattern]) * _WORD, "little", signed=True)

    def damage(self) -> str:
        """How many guard bytes are not as they were, and where the nearest is."""
        after = (self._after != self._pattern).nonzero().flatten()
        before = (self._before != self._pattern).nonzero().flatten()
        if len(after):
            where = f"from {int(after[0])} bytes after its end"
        else:
            where = f"up to {len(self._before) - 1 - int(before[-1])} bytes before its start"
        return f"{len(before) + len(after)} bytes {where}"


def _present(device: str) -> str:
    """``device``, or the GPU that this process sees where it sees fewer than the one that packed the tensor."""
    import torch

    kind, _, index = device.partition(":")
    return "cuda:0" if kind == "cuda" and int(index or 0) >= torch.cuda.device_count() else device


def _margin(nbytes: int, device: str) -> int:
    import torch

    if not device.startswith("cuda"):
        return _LEAST
    free = int(torch.cuda.mem_get_info(device)[0])
    return max(_LEAST, min(max(nbytes, _USUAL), _MOST, free // _SHARE) // _LEAST * _LEAST)
