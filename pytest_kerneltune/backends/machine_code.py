"""What a compiled CUDA kernel (cubin, an ELF file) does, without what it tells a debugger.

Lines and paths of the source are in there, too: an edited comment, or another folder, makes another file of the same
kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_SECTION_HEADERS = struct.Struct("<40xQ10xHHH")  # of the ELF header: offset, size of one, number, index of the names
_SECTION = struct.Struct("<II16xQQ24x")  # of a section header: name, type, offset, size
_NO_CONTENT = 8  # the type of a section that has a size only (SHT_NOBITS)
_FOR_DEBUGGERS = "debug"  # in the name of a section


def without_debugging(cubin: bytes) -> bytes:
    """All that a launch may depend on, for digests; ``cubin`` itself where it cannot be read."""
    try:
        parts = [name.encode() + b"\0" + content for name, content in _sections(cubin) if _FOR_DEBUGGERS not in name]
    except (ValueError, LookupError, struct.error):
        return cubin
    return b"\0".join(parts) or cubin


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of every section but that of their names; of one without content its size."""
    start, size, count, names = _SECTION_HEADERS.unpack_from(elf)
    rows = [_SECTION.unpack_from(elf, start + i * size) for i in range(count)]
    *_, titles, _ = rows[names]
    for i, (name, kind, offset, length) in enumerate(rows):
        if i != names:
            title = elf[titles + name : elf.index(b"\0", titles + name)].decode(errors="replace")
            yield title, str(length).encode() if kind == _NO_CONTENT else elf[offset : offset + length]
