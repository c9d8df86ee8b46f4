"""Which compile worker is making a piece of code, so that the others of its run need not make it too.

Configs of equal code are often compiled at the same time: they stand side by side in a search's queue. A worker claims
what it is about to make; one that finds it claimed gives up its turn and can compile something else meanwhile. What was
claimed by a worker that was killed was too slow to compile: whoever needs it later is told so at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

FOLDER = "kerneltune-claims-"
"""Beginning of the name of the folder of one run's claims; the process id of whose workers these are follows."""


class BeingMade(Exception):
    """Another worker is making that; the text is its process id."""


class GivenUp(Exception):
    """The worker that was making that was killed."""


@contextlib.contextmanager
def claimed(key: str) -> Iterator[None]:
    """Make in the body what ``key`` (hex digits) stands for, unless another worker of this run is making it.

    Raises BeingMade, or GivenUp where a worker was killed over it. Where claims can't be kept, everybody makes it.
    """
    folder = Path(tempfile.gettempdir(), f"{FOLDER}{os.getppid()}")
    path = folder / key
    try:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield
        return
    try:
        _take(descriptor)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)  # with its lock


def _take(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BeingMade(_holder(descriptor)) from None
    if killed := _holder(descriptor):
        raise GivenUp(f"worker {killed} was killed while it compiled the same code")
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode()
