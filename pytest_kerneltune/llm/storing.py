"""Files of replies: JSON documents, read whatever lies in their place, and replaced whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pytest_kerneltune.disk import regular, strictjson, unused


def read_document(path: Path, limit: int = strictjson.MAX_BYTES, follow: bool = True) -> Any:
    """The value of the strict JSON document in ``path``.

    Raises OSError where that is no regular file, or a link and not to ``follow``; ValueError that says what is wrong
    where it is larger than ``limit`` bytes or no such document.
    """
    with os.fdopen(regular.opened(path, os.O_RDONLY | (0 if follow else os.O_NOFOLLOW)), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit >> 20} MiB")
    return strictjson.parse(content)


def replace_file(path: Path, text: str) -> None:
    """Put ``text`` (UTF-8) in place of the file ``path``, whole or not at all; raises OSError.

    A symbolic link is followed, an existing file keeps its mode. What killed writers left beside it goes.
    """
    target = Path(os.path.realpath(path))
    regular.replace(target, text.encode(), None)
    unused.remove_stale(target.parent)


def token_count(value: Any) -> int | None:
    """``value``, read from a file, if it is a number of tokens."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
