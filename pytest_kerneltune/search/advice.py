"""What source and inputs of a kernel say about its work, and what that means for tuning it.

All of it holds on every machine; what depends on hardware is in ``roofline.py`` and ``hardware.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pytest_kerneltune.search import Subject
from pytest_kerneltune.search.arithmetic import Array, Work, arrays, work
from pytest_kerneltune.search.traits import found_traits, trait_lines

_SHOWN_SIZES = 6
_SMALLEST = 16
"""A smaller dimension is no matter of tiling."""
_WHOLE = 1 << 16
"""From here on no single tile covers a dimension."""
_BORDER = 32
"""A size that exceeds another by no more has a border, which is not tiled."""
_TILES = (32, 64, 128, 256)
_FULL = 0.97


def workload(subject: Subject, names: Sequence[str]) -> list[str]:
    """Traits, bytes, operations and awkward sizes, one line each; ``names`` are the parameters'. May be empty."""
    return [
        *trait_lines(subject.kind, [subject.name, *names], subject.source),
        *_amount_lines(subject_work(subject, names), arrays(subject.inputs)),
        *_padding_lines(subject.kind, arrays(subject.inputs)),
    ]


def subject_work(subject: Subject, names: Sequence[str]) -> Work:
    """The operations of a kernel, as far as its traits and its inputs' shapes tell."""
    traits = {t.name for t in found_traits([subject.name, *names], subject.source)}
    return work(traits, arrays(subject.inputs))


def has_products(subject: Subject, names: Sequence[str]) -> bool:
    """Whether the kernel may multiply matrices: it does, or nothing is known of it."""
    traits = {t.name for t in found_traits([subject.name, *names], subject.source)}
    return bool(traits & {"matrix product", "attention"}) or not (subject.source or traits)


def _amount_lines(done: Work, found: Sequence[Array]) -> list[str]:
    total = sum(a.bytes for a in found)
    if not total:
        return []
    lines = [f"the arrays hold {in_bytes(total)} in all; reading or writing each byte once is the least traffic"]
    if done.flop:
        lines.append(f"taken as {done.words}, {done.flop / total:.4g} FLOP per byte of the arrays")
    return lines


def _padding_lines(kind: str, found: Iterable[Array]) -> list[str]:
    """Sizes that tiles of powers of two divide badly, the largest first."""
    sizes = sorted({n for a in found for n in a.shape if n >= _SMALLEST}, reverse=True)
    inner = [n for n in sizes if n & (n - 1) and not any(0 < n - m <= _BORDER for m in sizes)]
    lines = [f"size {n}: {words}" for n in inner if (words := _padding(n, kind in {"triton", "helion"}))]
    return lines[:_SHOWN_SIZES]


def _padding(n: int, must_be_power: bool) -> str:
    """How much of tiles over ``n`` elements is idle; "" where that is hardly any."""
    shares = {tile: n / (math.ceil(n / tile) * tile) for tile in _TILES if tile < n}
    parts = []
    if must_be_power and n < _WHOLE:
        above = 1 << n.bit_length()
        parts.append(f"a single power-of-two tile over it is {above} wide ({1 - n / above:.0%} of it idle)")
    if must_be_power and n % 16:
        parts.append("no multiple of 16: as a row's stride it hides alignment from Triton, whose loads are then narrow")
    if any(share < _FULL for share in shares.values()):
        parts.append("useful share of tiles of " + ", ".join(f"{tile}: {share:.0%}" for tile, share in shares.items()))
    return "; ".join([*parts, f"the largest power of two that divides it is {n & -n}"] if parts else [])


def in_bytes(n: float) -> str:
    """A number of bytes in words."""
    return f"{n / 2**20:.4g} MiB" if n >= 2**20 else f"{n / 2**10:.4g} KiB"
