"""How a search asks a language model: messages out, a reply in the future, readable while it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Message:
    """One turn of a conversation with a language model."""

    role: Literal["system", "user", "assistant"]
    content: str


class StreamedReply(Future[str]):
    """A reply whose text can be read while the model still writes it.

    Whoever answers calls :meth:`write` with each piece, then sets the result (the whole text, which counts whatever was
    written) or an LLMError. Whoever reads may say that it is :meth:`enough`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[str] = []
        self._length = 0
        self._wanted = True
        self._changed = Condition()
        self.add_done_callback(lambda _: self._notify())

    def write(self, piece: str) -> bool:
        """Append to what can be read; False where no more is wanted."""
        with self._changed:
            self._pieces.append(piece)
            self._length += len(piece)
            self._changed.notify_all()
            return self._wanted

    def enough(self) -> None:
        """Want no more of the reply than was written by now; who writes learns it with the next piece."""
        with self._changed:
            self._wanted = False

    def read(self, beyond: int) -> str:
        """The text so far, as soon as it is longer than ``beyond`` characters or the reply has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._length > beyond or self.done())
            self._pieces = ["".join(self._pieces)]
            return self._pieces[0]

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


Submit: TypeAlias = Callable[[Sequence[Message]], Future[str]]
"""Asks a language model; the future's result is the reply's text, or it raises LLMError. A StreamedReply is read while
it is written."""
