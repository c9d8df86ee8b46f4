"""Reading one reply of a language model as configs to measure: while it is written, where it can be read so early.

1. Configs are handed out as soon as they are complete, but for the last one so far, and all but one of those asked for:
   the batch that ends the reply, which says what became of it, is never empty where the reply held anything new.
2. Which configs are measured in which order depends on the reply's text alone, not on when which part of it came.
3. What the whole reply says counts. Where that is something else than it seemed to say (a draft came first), what was
   measured by then counts as proposed too, and there are no more configs in all than were asked for.
4. A reply that breaks off is read as far as it came.
5. A reply that goes on and on after it held enough configs is not read to its end. Where that is depends on its text
   alone, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.search.extract import EarlyObjects
from pytest_kerneltune.search.port import StreamedReply
from pytest_kerneltune.search.replies import MAX_CHARACTERS, Reply, fitted_config, parse_reply
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

_SHORT = 16_384  # characters
_STEP = 512
_EXCESS = 4_000
"""Characters that may follow the last config that is wanted, give or take a step."""


@dataclass(frozen=True)
class Answer:
    """A reply that has ended: its ``new`` configs, of which the last ``len(left)`` remain to be measured.

    ``beside`` of them are not in ``reply`` (rule 3). ``error`` says why there was no answer, or not to the end; empty
    where there was.
    """

    reply: Reply = field(default_factory=Reply)
    new: Sequence[Config] = ()
    left: Sequence[Config] = ()
    beside: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """How many configs were proposed, valid and new."""
        proposed, valid = self.reply.proposed, len(self.reply.configs)
        return {"proposed": proposed + self.beside, "valid": valid + self.beside, "new": len(self.new)}

    @property
    def note(self) -> str:
        """What became of the reply, in a line for the report."""
        counts = self.counts
        parts = [", ".join(f"{n} {name}" for name, n in counts.items())]
        if self.dropped:
            parts.append("dropped: " + ", ".join(f"{n} x {reason}" for reason, n in self.dropped.items()))
        if 2 * (counts["proposed"] - counts["valid"]) > counts["proposed"]:
            parts.append("warning: more than half of the model's configs could not be used")
        if self.error:
            parts.append(f"broke off: {self.error}")
        return "; ".join(parts)


def read(
    future: Future[str], space: ConfigSpace, known: Collection[str], limit: int
) -> Generator[list[Config], None, Answer]:
    """Yield configs of a reply while it is written; return what it was in the end.

    No more than ``limit`` configs, none of those whose keys are in ``known``, each once.
    """
    reading, extent = _Reading(space, known, limit), _Extent(space, known, limit)
    text = ""
    if isinstance(future, StreamedReply):
        while not future.done() and not extent.exceeded:
            # Each look costs as much as the text is long, so a long one is not looked at for every piece.
            text = extent.of(future.read(beyond=len(text) + (len(text) // 64 if len(text) > _SHORT else 0)))
            if reading.wants_more and (new := reading.early(text)):
                yield new
        if extent.exceeded:
            future.enough()
    whole, error = _ended(future)
    is_streamed = isinstance(future, StreamedReply) and whole.startswith(text)
    if not is_streamed:
        extent = _Extent(space, known, limit)
    whole = extent.of(whole)
    return reading.end(whole, "" if extent.exceeded else error, is_streamed)


def _ended(future: Future[str]) -> tuple[str, str]:
    """The whole reply, and why it broke off if it did."""
    try:
        return future.result(), ""
    except LLMError as failure:
        return future.read(beyond=0) if isinstance(future, StreamedReply) else "", str(failure)


class _Extent:
    """How much of a reply counts, found step by step, so that it does not depend on the pieces in which it comes.

    ``exceeded`` is whether the reply turned out to be longer.
    """

    def __init__(self, space: ConfigSpace, known: Collection[str], limit: int) -> None:
        self.exceeded = False
        self._reading = _Reading(space, known, limit)
        self._looked_at, self._end = 0, MAX_CHARACTERS

    def of(self, text: str) -> str:
        """What counts of ``text``, which begins with what it was before."""
        for end in range(self._looked_at + _STEP, min(len(text), self._end - _EXCESS) + 1, _STEP):
            self._looked_at = end
            if self._reading.is_full(text[:end]):
                self._end = end + _EXCESS
                break
        self.exceeded = len(text) > self._end
        return text[: self._end]


class _Reading:
    """How far a reply was read, and what came of it so far."""

    def __init__(self, space: ConfigSpace, known: Collection[str], limit: int) -> None:
        self._space, self._known, self._limit = space, known, limit
        self._objects = EarlyObjects(set(space.parameters))
        self._seen: dict[str, Config] = {}
        self._given = 0

    @property
    def wants_more(self) -> bool:
        return self._given < self._limit - 1

    def is_full(self, text: str) -> bool:
        """Whether the reply, ``text`` so far, holds as many configs as are wanted."""
        self._look(text, ended=False)
        return len(self._seen) >= self._limit

    def early(self, text: str) -> list[Config]:
        """The configs to measure now that the reply is ``text`` so far."""
        self._look(text, ended=False)
        new = self._certain()[self._given :]
        self._given += len(new)
        return new

    def end(self, text: str, error: str, is_streamed: bool) -> Answer:
        """What is left to do with the reply, whose whole text this is."""
        if is_streamed:
            self._look(text, ended=True)
        given = {self._space.key(c): c for c in self._certain()}
        reply = parse_reply(text, self._space)
        valid = {self._space.key(c): c for c in reply.configs}
        unknown = {key: c for key, c in valid.items() if key not in self._known}
        # At the very end what was held back, in case that the whole reply says something else.
        taken = dict(list({**given, **unknown, **self._seen}.items())[: self._limit])
        new, repeated, excess = list(taken.values()), len(valid) - len(unknown), len(unknown.keys() - taken.keys())
        dropped = {"measured before": repeated, "more than asked for": excess}
        reasons = {**reply.dropped, **{reason: n for reason, n in dropped.items() if n}}
        return Answer(reply, new, new[self._given :], len(taken.keys() - valid.keys()), reasons, error)

    def _look(self, text: str, ended: bool) -> None:
        for values in self._objects.feed(text[:MAX_CHARACTERS], ended):
            config = fitted_config(values, self._space, Counter())
            if config is not None and (key := self._space.key(config)) not in self._known:
                self._seen.setdefault(key, config)

    def _certain(self) -> list[Config]:
        """What may be measured whatever the whole reply says."""
        return list(self._seen.values())[:-1][: self._limit - 1]
