"""What answers questions: the protocol shared by providers over HTTP, recorded replies, and what is wrapped around."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from pytest_kerneltune.llm.providers import Answer
from pytest_kerneltune.search import Message

Write: TypeAlias = Callable[[str], bool | None]
"""Takes a piece of a reply as it arrives; returns False where no more are wanted."""


def ignore(piece: str) -> None:
    """A ``Write`` for who wants the whole reply only."""


class Source(Protocol):
    """Answers questions, from several threads at once."""

    def ask(self, messages: Sequence[Message], deadline: float | None = None, write: Write = ignore) -> Answer:
        """The answer to ``messages``, before ``deadline`` (``time.monotonic`` seconds; None: its own limit).

        ``write`` gets the pieces of the text as they arrive, where they arrive one by one. Raises LLMError.
        """

    def close(self) -> None:
        """Close what is open."""


class DigestingSource(Source, Protocol):
    """A source that can say which questions would get the same answer."""

    def digest(self, messages: Sequence[Message]) -> str:
        """The SHA-256, in hex, of all that decides the answer; nothing secret is part of it."""


@runtime_checkable
class ForgettingSource(Source, Protocol):
    """A source that keeps answers."""

    def forget(self, messages: Sequence[Message]) -> None:
        """Keep no answer to ``messages`` any longer."""


@dataclass(frozen=True)
class KeptAnswer(Answer):
    """An answer of an earlier request, which costs nothing now; its tokens are what it cost then."""
