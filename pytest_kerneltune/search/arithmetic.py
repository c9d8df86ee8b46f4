"""How much a kernel reads, writes and computes, as far as its inputs' shapes tell.

Operations are known for a few sorts of work whose shapes leave one reading: products of matrices, attention, filters.
A fused multiply-add counts as two operations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

_SHAPE = re.compile(r"[\[(]\s*(\d+(?:\s*,\s*\d+)*)\s*,?\s*[\])]")
_TYPE = re.compile(r"\b(bfloat|float|fp|bf|uint|int|complex|[fiu])(8|16|32|64|128)(?!\d)")
_PRODUCT_ARRAYS = 6
"""Arrays of a rank among which the operands of a product are looked for."""


@dataclass(frozen=True)
class Array:
    """An input that is an array: ``kind`` is "float", "bfloat", "int", ...; ``bits`` is the size of an element."""

    shape: tuple[int, ...]
    kind: str
    bits: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind in {"float", "bfloat", "fp", "bf", "f"}


@dataclass(frozen=True)
class Work:
    """What is computed: ``flop`` operations (0: not known), ``words`` on how that was counted, and the operands."""

    flop: float = 0.0
    words: str = ""
    operands: tuple[Array, ...] = ()


def arrays(inputs: Iterable[str]) -> list[Array]:
    """The inputs that are described as arrays, by a shape in brackets and a type."""
    return [found for line in inputs if (found := _array(line)) is not None]


def work(traits: Collection[str], found: Sequence[Array]) -> Work:
    """The operations of a kernel with ``traits`` on arrays."""
    for trait, count in _COUNTS.items():
        if trait in traits:
            for guess in count(found):
                return guess
    return Work()


def _array(line: str) -> Array | None:
    shape, kind = _SHAPE.search(line), _TYPE.search(line)
    if shape is None or kind is None:
        return None
    return Array(tuple(int(n) for n in shape[1].split(",")), kind[1], int(kind[2]))


def _of_rank(found: Sequence[Array], rank: int) -> list[Array]:
    return [a for a in found if len(a.shape) == rank][:_PRODUCT_ARRAYS]


def _products(found: Sequence[Array]) -> Iterator[Work]:
    """A of M x K, B of K x N (or N x K), C of M x N; a batch of them where all have one more dimension."""
    for rank in (2, 3):
        for a, b, c in permutations(_of_rank(found, rank), 3):
            batch = a.shape[: rank - 2]
            if b.shape[: rank - 2] != batch or c.shape[: rank - 2] != batch:
                continue
            (m, k), (m2, n) = a.shape[-2:], c.shape[-2:]
            if m == m2 and b.shape[-2:] in ((k, n), (n, k)):
                flop = 2.0 * math.prod(batch) * m * n * k
                times = f"{batch[0]} times " if batch else ""
                yield Work(flop, f"{times}a product of {m}x{k} and {k}x{n}: {flop / 1e9:.4g} GFLOP", (a, b))


def _attention(found: Sequence[Array]) -> Iterator[Work]:
    """Queries [..., M, D] and output of one shape, keys and values [..., N, D] of another or the same."""
    for rank in (4, 3):
        for q, k, v, o in permutations(_of_rank(found, rank)[:4], 4):
            same = q.shape == o.shape and k.shape == v.shape and k.shape[-1] == q.shape[-1] and k.shape[0] == q.shape[0]
            if same:
                flop = 4.0 * math.prod(q.shape) * k.shape[-2]
                words = f"attention of {q.shape[-2]} queries over {k.shape[-2]} keys with heads of {q.shape[-1]}"
                yield Work(flop, f"{words}: {flop / 1e9:.4g} GFLOP, half of it if causal", (q, k))


def _filters(found: Sequence[Array]) -> Iterator[Work]:
    """A filter of the images' rank, small beside them; or one [out, in, height, width] of images [n, in, h, w]."""
    for image, weights, out in permutations(found[:_PRODUCT_ARRAYS], 3):
        if len(weights.shape) == 1 and len(image.shape) == len(out.shape) == 2:
            yield from _separable(image, weights.shape[0], out)
        ranks = {len(image.shape), len(weights.shape), len(out.shape)}
        if len(ranks) > 1 or weights.elements * 16 > out.elements:
            continue
        if len(out.shape) == 4 and weights.shape[0] == out.shape[1] and weights.shape[1] == image.shape[1]:
            taps = math.prod(weights.shape[1:])
        elif len(out.shape) <= 3 and all(
            0 <= i - o < w for i, o, w in zip(image.shape, out.shape, weights.shape, strict=True)
        ):
            taps = weights.elements
        else:
            continue
        flop = 2.0 * out.elements * taps
        yield Work(flop, f"{out.elements} results of {taps} taps each: {flop / 1e9:.4g} GFLOP", (image, weights))


def _separable(image: Array, taps: int, out: Array) -> Iterator[Work]:
    """Both dimensions of an image are filtered with the same taps."""
    if all(0 <= i - o < taps for i, o in zip(image.shape, out.shape, strict=True)) and taps > 1 and image != out:
        flop = 4.0 * out.elements * taps
        direct = 2.0 * out.elements * taps**2
        words = (
            f"{out.elements} results: {direct / 1e9:.4g} GFLOP with {taps}x{taps} taps at once, {flop / 1e9:.4g} GFLOP"
        )
        yield Work(flop, f"{words} in two passes of {taps} taps, which are counted below", (image,))


_COUNTS: dict[str, Callable[[Sequence[Array]], Iterator[Work]]] = {
    "attention": _attention,
    "matrix product": _products,
    "stencil or convolution": _filters,
}
"""Trait to what counts its operations: the likely readings, the best first."""
