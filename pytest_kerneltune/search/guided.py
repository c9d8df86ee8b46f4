"""LLMGuidedSearch: a conversation with a language model about which configs to measure.

A first batch comes from what the model knows of such kernels, further ones from what was measured. It follows the
search of the same name in Helion's autotuner (pytorch/helion), with these differences:

1. A model that is missing or fails does not end the run: what takes its place is the user's choice (``fallback.py``).
2. A reply is repaired where it has one reading (``replies.py``), and the model is told what was dropped and why.
3. A reply is measured while it is written, where the model streams it (``reading.py``).
4. The strongest configs are timed again, side by side, before the model is told the results: what it makes of them
   rests on differences of a few percent.
5. The conversation quotes the configs that a reply held, not its text, and its last exchanges only, so that its length
   is bounded.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, TypeAlias

from pytest_kerneltune.errors import LLMError, UsageError
from pytest_kerneltune.search import FALLBACKS, Context, Effort, Message, Proposals, Related, Subject, Submit
from pytest_kerneltune.search.dialogue import Request, first_request, refine_request, reply_text
from pytest_kerneltune.search.fallback import Stage, instead
from pytest_kerneltune.search.history import History
from pytest_kerneltune.search.reading import Answer, read
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial

START = "random start"
"""Stage of the configs measured while the model writes its first reply."""

MODEL = "language model"
"""Stage of the configs that the model proposed."""

_ROUNDS = {Effort.QUICK: 1, Effort.FULL: 4}
_REMEMBERED = 3
_RETIMED = 5

_Reading: TypeAlias = Generator[Sequence[Config], Sequence[Trial], Answer]


@dataclass(frozen=True)
class LLMGuidedSearch:
    """Rounds of ``configs_per_round`` configs from a language model, besides a start it does not know about.

    While the model writes its first reply, the default, ``configs`` and ``initial_random`` random configs (fewer by the
    number of prior trials) are measured; more random ones than ``early_random`` only where nothing comes of the model.
    Ends after ``rounds``, when a reply holds no new config, or after ``patience`` rounds in a row that gained less than
    ``min_gain`` (a fraction). ``related`` trials are shown to the model. Where the model is missing, fails, or names no
    config of the space in its first reply, ``fallback`` is what follows.

    Raises UsageError where ``fallback`` is none of ``FALLBACKS``, and LLMError while proposing where it is "error".
    """

    uses_model: ClassVar[bool] = True

    model: Submit | None = None
    subject: Subject = field(default_factory=Subject)
    configs: tuple[Config, ...] = ()
    configs_per_round: int = 15
    rounds: int = 1
    initial_random: int = 10
    early_random: int = 10
    min_gain: float = 0.005
    patience: int = 2
    fallback: str = FALLBACKS[0]
    related: Related = ()

    def __post_init__(self) -> None:
        if self.fallback not in FALLBACKS:
            raise UsageError(f"{type(self).__name__}: fallback={self.fallback!r} is not one of {', '.join(FALLBACKS)}")

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        return cls(
            context.model,
            context.subject,
            context.configs,
            rounds=_ROUNDS.get(effort, 1),
            # Of few configs, most are for what the model proposes.
            early_random=context.at_most(cls.early_random),
            fallback=context.fallback,
            related=context.related,
        )

    @property
    def used_related(self) -> Related:
        """The related trials that the model is shown."""
        return self.related if self.model is not None and self.rounds > 0 else ()

    @property
    def has_part(self) -> bool:
        """Whether the model, or what takes its place, has any part in the search."""
        return self.rounds > 0 and (self.model is not None or self.fallback != FALLBACKS[0])

    def with_rounds(self, rounds: int) -> Self:
        """The same search with another number of rounds."""
        return replace(self, rounds=rounds)

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        history = History(space, prior)
        start = self._start(space, rng, history)
        size = 1 + len(self.configs) + self.early_random
        known = len(history) + len(start[:size])
        report = yield from self.converse(space, rng, history, Batch(start[:size], START))
        if not start[size:] or len(history) > known:
            return report
        history.learn((yield Batch(start[size:], START, report.note, counts=report.counts)))
        return Batch(())

    def converse(self, space: ConfigSpace, rng: random.Random, history: History, start: Batch) -> Stage:
        """As :meth:`propose`, with another start; ``history`` learns all trials."""
        talk = _Conversation(self, space, history)
        first = talk.ask() if self.has_part else None
        if start:
            history.learn((yield start))
        return (yield from self._rounds(talk, first, rng)) if first else Batch(())

    def _rounds(self, talk: _Conversation, reply: Future[str], rng: random.Random) -> Stage:
        weak, history = 0, talk.history
        while True:
            answer = yield from talk.measured(reply)
            if answer.error or (talk.number == 1 and not (answer.new or answer.reply.configs)):
                return (yield from self._instead(talk, answer, rng))
            if not answer.new:
                return Batch((), MODEL, answer.note, counts=answer.counts)
            weak = 0 if history.best_ms < talk.before_ms * (1 - self.min_gain) else weak + 1
            if weak >= self.patience or talk.number == self.rounds:
                return Batch(())
            talk.refine(answer)
            reply = talk.ask()

    def _instead(self, talk: _Conversation, answer: Answer, rng: random.Random) -> Stage:
        """What takes the model's place after it failed."""
        why = answer.error or answer.note
        if self.fallback == "error":
            raise LLMError(f"request {talk.number} to the language model came to nothing: {why}")
        rounds = [self.configs_per_round] * (self.rounds - talk.number + 1)
        rounds[0] -= len(answer.new)
        report = Batch((), MODEL) if answer.new else Batch((), MODEL, f"{MODEL}: {why}", counts=answer.counts)
        return (yield from instead(self.fallback, talk.space, rng, talk.history, rounds, report))

    def _start(self, space: ConfigSpace, rng: random.Random, history: History) -> list[Config]:
        fixed = history.unmeasured([space.default, *map(space.canonical, self.configs)])
        seen = history.keys | {space.key(c) for c in fixed}
        return fixed + space.sample_new(rng, max(0, self.initial_random - len(history)), seen)


class _Conversation:
    """What was said so far, and what the next request is; ``before_ms`` is the best latency before the last round."""

    def __init__(self, options: LLMGuidedSearch, space: ConfigSpace, history: History) -> None:
        self._options, self.space, self.history = options, space, history
        self.number = 0
        self.before_ms = history.best_ms
        self._opening = first_request(
            options.subject,
            space,
            options.configs_per_round,
            options.configs,
            tuple(history.trials),
            related=options.related,
        )
        self._exchanges: list[Message] = []

    def ask(self) -> Future[str]:
        """Send the next request; what the reply raises says why there is none."""
        self.number += 1
        future: Future[str] = Future()
        if self._options.model is None:
            future.set_exception(LLMError("no language model"))
            return future
        try:
            recent = self._exchanges[-2 * _REMEMBERED :]
            return self._options.model(Request([*self._opening, *recent], self._opening.schema))
        except LLMError as error:
            future.set_exception(error)
            return future

    def measured(self, reply: Future[str]) -> _Reading:
        """Propose the configs of a reply; returns what it was."""
        self.before_ms = self.history.best_ms
        reading = read(reply, self.space, frozenset(self.history.keys), self._options.configs_per_round)
        try:
            while True:
                early = next(reading)
                counts = {name: len(early) for name in Answer().counts}
                self.history.learn((yield Batch(early, MODEL, counts=counts)))
        except StopIteration as end:
            answer: Answer = end.value
        if answer.left:
            given = len(answer.new) - len(answer.left)
            counts = {name: number - given for name, number in answer.counts.items()}
            retime = _RETIMED if self.number < self._options.rounds else 0
            self.history.learn((yield Batch(answer.left, MODEL, answer.note, retime, counts)))
        return answer

    def refine(self, answer: Answer) -> None:
        """Add a reply, and the question for the next one."""
        count = self._options.configs_per_round
        question = refine_request(
            self.space,
            self.history.trials,
            count,
            self.number + 1,
            answer.dropped,
            subject=self._options.subject,
            before_ms=self.before_ms,
        )
        quoted = reply_text(answer.reply.configs[:count], self.space.default)
        self._exchanges += [Message("assistant", quoted), question]
