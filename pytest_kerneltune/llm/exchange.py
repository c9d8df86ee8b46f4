"""One HTTP exchange under a deadline: what the HTTP stack leaves to its user."""

from __future__ import annotations

import socket
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import httpx

MAX_BYTES = 8 << 20
"""Bytes of a reply, unpacked, that are read."""

ENCODING = "gzip"
"""The content encoding that ``unpacked`` can undo."""

_BLOCK = 1 << 16


class TooLarge(Exception):
    """A reply of more than ``MAX_BYTES``."""


class Enough(Exception):
    """Who reads the reply wants no more of it."""


class Alarm:
    """Ends a connection after some seconds, whatever it is doing; ``rung`` says whether it came to that.

    ``reached`` is the host and port that was connected to, or tried last.

    The stack's own limits count from read to read, so that a trickle of bytes would pass them for ever.
    """

    def __init__(self, seconds: float) -> None:
        self.rung = False
        self.reached: tuple[str, int] = ("", 0)
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """A ``trace`` extension of requests: finds the connection's socket."""
        if event.endswith(".connect_tcp.started"):
            self.reached = info["host"], info["port"]
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
            if self.rung:
                self._ring()

    def _ring(self) -> None:
        with self._lock:
            self.rung = True
            if self._socket is not None:
                with suppress(OSError):  # it has ended already
                    # Not the method of SSLSocket, which another thread may be reading from.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def unpacked(response: httpx.Response, limit: int = MAX_BYTES) -> Iterator[bytes]:
    """The body in small pieces as it arrives; raises TooLarge once there are more than ``limit`` bytes."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in (ENCODING, "identity", ""):
        raise httpx.DecodingError("an encoding that was not asked for", request=response.request)
    pieces = _unzipped(response.iter_raw()) if encoding == ENCODING else response.iter_raw()
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise TooLarge
        yield piece


def _unzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """A small piece may hold a thousand times its size, so it is unpacked bit by bit."""
    unpacking = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    for chunk in chunks:
        while chunk:
            yield unpacking.decompress(chunk, _BLOCK)
            chunk = unpacking.unconsumed_tail
    yield unpacking.flush()
