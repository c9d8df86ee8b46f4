"""What a compiled CUDA kernel says of itself in its ELF file (cubin): what it uses, its parameters, its launch bounds.

It is an ELF file with attributes of its functions in the sections ``.nv.info`` and ``.nv.info.NAME`` (as ``cuobjdump
--dump-elf`` shows them), which NVIDIA does not document: what is not found counts as unknown.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

_SECTION_HEADERS = struct.Struct("<40xQ10xHHH")  # of the ELF header: offset, size of one, number, index of the names
_SECTION = struct.Struct("<I20xQQ24x")  # of a section header: name, offset, size
_SYMBOL = struct.Struct("<I20x")  # name
_SIZED = 0x04  # format of an attribute that has a length and so many bytes
_MAX_THREADS, _PARAMETER = 0x05, 0x17
_FRAME_SIZE, _MIN_STACK_SIZE, _REGISTER_COUNT = 0x11, 0x12, 0x2F
_PARAMETER_SIZE_SHIFT = 18
_RESERVED_BYTES = 1024  # of a block's shared memory, by the system; from compute capability 9 on in its section


class Signature(NamedTuple):
    """Bytes of each parameter (None: unknown), and the threads that ``__launch_bounds__`` allows a block (0: any)."""

    parameters: tuple[int, ...] | None = None
    threads: int = 0


def signature(cubin: bytes, name: str) -> Signature:
    """The signature of the kernel ``name`` (as the compiler calls it)."""
    sizes: dict[int, int] = {}
    threads = 0
    try:
        for kind, value in attributes(section(cubin, f".nv.info.{name}")):
            if kind == _PARAMETER:
                _, place, size = struct.unpack("<3I", value)
                sizes[place & 0xFFFF] = size >> _PARAMETER_SIZE_SHIFT
            elif kind == _MAX_THREADS:
                x, y, z = struct.unpack("<3I", value)
                threads = x * y * z
    except (ValueError, struct.error):
        return Signature()
    known = sorted(sizes) == list(range(len(sizes)))
    return Signature(tuple(sizes[i] for i in range(len(sizes))) if known else None, threads)


def usage(cubin: bytes, name: str) -> dict[str, int]:
    """ "registers" and "stack_bytes" of a thread of the kernel ``name``, and the "shared_bytes" that it declares for a
    block; {} where they cannot be read."""
    try:
        symbols, names = section(cubin, ".symtab"), section(cubin, ".strtab")
        titles = [_text(names, first) for (first,) in _SYMBOL.iter_unpack(symbols)]
        pairs = [(kind, *struct.unpack("<2I", value)) for kind, value in attributes(section(cubin, ".nv.info"))]
        own = {kind: number for kind, symbol, number in pairs if titles[symbol] == name}
        sizes = {title: size for title, _, size in _sections(cubin)}
        reserved = _RESERVED_BYTES if ".nv.shared.reserved.0" in sizes else 0
        shared = max(0, sizes.get(f".nv.shared.{name}", 0) - reserved)
        stack = max(own[_FRAME_SIZE], own.get(_MIN_STACK_SIZE, 0))  # its own, and with the functions that it calls
        return {"registers": own[_REGISTER_COUNT], "stack_bytes": stack, "shared_bytes": shared}
    except (ValueError, LookupError, struct.error):
        return {}


def section(elf: bytes, wanted: str) -> bytes:
    """The content of a section of a 64-bit ELF file; raises ValueError or struct.error where it is not in there."""
    for title, offset, size in _sections(elf):
        if title == wanted:
            return elf[offset : offset + size]
    raise ValueError(f"no section {wanted!r}")


def _sections(elf: bytes) -> list[tuple[str, int, int]]:
    """Name, offset and size of every section."""
    start, size, count, names = _SECTION_HEADERS.unpack_from(elf)
    rows = [_SECTION.unpack_from(elf, start + i * size) for i in range(count)]
    titles = rows[names][1] if names < count else 0
    return [(_text(elf, titles + name), offset, length) for name, offset, length in rows]


def _text(content: bytes, first: int) -> str:
    return content[first : content.index(b"\0", first)].decode(errors="replace")


def attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each attribute that has a length; raises struct.error where they end too early."""
    at = 0
    while at < len(info):
        form, kind, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == _SIZED:
            yield kind, info[at : at + size]
            at += size
