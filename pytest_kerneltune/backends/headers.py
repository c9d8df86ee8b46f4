"""The headers that a C++ or CUDA source may include, found as a preprocessor would, whatever its conditions say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include(?:_next)?[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>|(\w+))', re.MULTILINE)


class Headers(NamedTuple):
    """``texts`` are name (as included) and text of each header, in the order found; ``complete`` is False where an
    include is named by a macro, so that more may be read than was found."""

    texts: tuple[tuple[str, str], ...]
    complete: bool


def find_headers(source: str, directories: Sequence[Path], toolkit: Sequence[Path] = ()) -> Headers:
    """Every header that ``source`` and its headers include, where it is found in ``directories`` or ``toolkit``.

    A quoted one is looked for beside the file that names it first. Macros that name headers inside ``toolkit`` do not
    make the list incomplete: its version says what they are.
    """
    texts: list[tuple[str, str]] = []
    seen: set[Path] = set()
    complete = True
    pending: list[tuple[str, Path | None, bool]] = [(source, None, True)]
    while pending:
        text, beside, own = pending.pop(0)
        for quoted, angled, macro in _INCLUDE.findall(text):
            complete = complete and not (macro and own)
            places = [*([beside] if quoted and beside else []), *directories, *toolkit]
            path = _first_file(quoted or angled, places)
            if path is not None and path not in seen:
                seen.add(path)
                content = path.read_text(encoding="utf-8", errors="replace")
                texts.append((quoted or angled, content))
                pending.append((content, path.parent, not any(path.is_relative_to(d) for d in toolkit)))
    return Headers(tuple(texts), complete)


def _first_file(name: str, places: Sequence[Path]) -> Path | None:
    return next((path.resolve() for place in places if name and (path := place / name).is_file()), None)
