"""Keeping requests out of the log: the HTTP stack writes addresses and headers there, which hold secrets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_STACK = ("httpx", "httpcore")

_asking: ContextVar[bool] = ContextVar("kerneltune_asking", default=False)


@contextmanager
def unlogged() -> Iterator[None]:
    """Drop what the HTTP stack logs of requests that this thread makes meanwhile; what others make is logged."""
    # A logger's filters do not see what its children log. Adding one twice is adding it once.
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in _STACK:
            logging.getLogger(name).addFilter(_not_ours)
    token = _asking.set(True)
    try:
        yield
    finally:
        _asking.reset(token)


def _not_ours(_: logging.LogRecord) -> bool:
    return not _asking.get()
