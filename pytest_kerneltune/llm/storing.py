"""Files of replies: replaced whole, so that neither a reader nor a killed writer leaves half of one behind."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any


def replace_file(path: Path, text: str) -> None:
    """Put ``text`` (UTF-8) in place of the file ``path``, whole or not at all; raises OSError.

    Directories are made as needed, a symbolic link is followed, an existing file keeps its mode.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.resolve()
    # Beside the target: a rename must not cross file systems.
    temporary = target.with_name(f".kerneltune-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(OSError):
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def token_count(value: Any) -> int | None:
    """``value``, read from a file, if it is a number of tokens."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
