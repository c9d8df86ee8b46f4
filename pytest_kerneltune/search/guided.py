"""Searches that ask a language model which configs to measure.

``LLMGuidedSearch`` is a conversation: a first batch from the model's knowledge of such kernels, further ones from what
was measured. ``LLMSeededLFBOTreeSearch`` holds one round of it and gives everything measured to a model-based search.
Both follow the searches of the same names in Helion's autotuner (pytorch/helion), with these differences:

- A model that is missing or fails ends the conversation, not the search.
- A reply is repaired where it has one reading, and the model is told what was dropped and why.
- The conversation quotes the configs that a reply held, not its text, so that its length is bounded.
- The second stage of the hybrid gets failed trials too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, TypeAlias

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.search import Context, Effort, Message, Proposals, Search, Subject, Submit
from pytest_kerneltune.search.dialogue import Request, first_request, refine_request, reply_text
from pytest_kerneltune.search.replies import Reply, parse_reply
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial, best_trial

START = "random start"
"""Stage of the configs measured while the model writes its first reply."""

MODEL = "language model"
"""Stage of the configs that the model proposed."""

_ROUNDS = {Effort.QUICK: 1, Effort.FULL: 4}
_REMEMBERED = 3

_Stage: TypeAlias = Generator[Sequence[Config], Sequence[Trial], tuple[list[Trial], str]]
"""Proposals that return all trials and a remark (empty: the stage ended as it should)."""


@dataclass(frozen=True)
class LLMGuidedSearch:
    """Rounds of ``configs_per_round`` configs from a language model, besides a start it does not know about.

    While the model writes its first reply, the default, ``configs`` and ``initial_random`` random configs (fewer by the
    number of prior trials) are measured; without a model that is all. Ends after ``rounds``, when a reply holds no new
    config, when the model fails, or after ``patience`` rounds in a row that gained less than ``min_gain`` (a fraction).
    """

    uses_model: ClassVar[bool] = True

    model: Submit | None = None
    subject: Subject = field(default_factory=Subject)
    configs: tuple[Config, ...] = ()
    configs_per_round: int = 15
    rounds: int = 1
    initial_random: int = 10
    min_gain: float = 0.005
    patience: int = 2

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        return cls(context.model, context.subject, context.configs, rounds=_ROUNDS.get(effort, 1))

    def with_rounds(self, rounds: int) -> Self:
        """The same search with another number of rounds."""
        return replace(self, rounds=rounds)

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        yield from self.converse(space, rng, prior)

    def converse(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> _Stage:
        """As :meth:`propose`; returns the new trials, and in one line why the conversation ended early."""
        known = _Known(space, prior)
        opening = first_request(self.subject, space, self.configs_per_round, self.configs, prior)
        answer = self._ask(opening, 1)
        if start := self._start(space, rng, known):
            known.learn((yield Batch(start, START)))
        exchanges: list[Message] = []
        number, weak = 1, 0
        while answer is not None:
            try:
                reply = parse_reply(answer.result(), space)
            except LLMError as error:
                return known.new, f"{MODEL}: {error}"
            batch, dropped = self._batch(reply, known)
            note = _note(reply, len(batch), dropped)
            if not batch:
                return known.new, f"{MODEL}: {note}"
            before = known.best_ms
            known.learn((yield Batch(batch, MODEL, note)))
            weak = 0 if known.best_ms < before * (1 - self.min_gain) else weak + 1
            number += 1
            question = refine_request(space, known.trials, self.configs_per_round, number, dropped)
            exchanges += [Message("assistant", reply_text(reply.configs)), question]
            request = Request([*opening, *exchanges[-2 * _REMEMBERED :]], opening.schema)
            answer = self._ask(request, number) if weak < self.patience else None
        return known.new, ""

    def _ask(self, request: Request, number: int) -> Future[str] | None:
        return None if self.model is None or number > self.rounds else self.model(request)

    def _start(self, space: ConfigSpace, rng: random.Random, known: _Known) -> list[Config]:
        fixed = known.unknown([space.default, *map(space.canonical, self.configs)])
        seen = known.keys | {space.key(c) for c in fixed}
        return fixed + space.sample_new(rng, max(0, self.initial_random - known.prior), seen)

    def _batch(self, reply: Reply, known: _Known) -> tuple[list[Config], dict[str, int]]:
        """The configs to measure, and what was dropped for which reason."""
        new = known.unknown(reply.configs)
        batch = new[: self.configs_per_round]
        dropped = {"measured before": len(reply.configs) - len(new), "more than asked for": len(new) - len(batch)}
        return batch, {**reply.dropped, **{reason: n for reason, n in dropped.items() if n}}


@dataclass(frozen=True)
class LLMSeededLFBOTreeSearch:
    """One round with a language model (``guide``), then ``second`` with all that was measured as its prior.

    Without a model it is ``second`` alone.
    """

    uses_model: ClassVar[bool] = True

    guide: LLMGuidedSearch
    second: Search

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        from pytest_kerneltune.search.forest import LFBOTreeSearch  # numpy, which the guide does without

        return cls(LLMGuidedSearch.preset(Effort.QUICK, context), LFBOTreeSearch.preset(effort, context))

    def with_rounds(self, rounds: int) -> Self:
        """The same search with another number of rounds with the model."""
        return replace(self, guide=self.guide.with_rounds(rounds))

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        trials: list[Trial] = []
        remark = ""
        if self.guide.model is not None and self.guide.rounds > 0:
            trials, remark = yield from self.guide.converse(space, rng, prior)
        yield from _remarked(self.second.propose(space, rng, (*prior, *trials)), remark)


def _remarked(proposals: Proposals, remark: str) -> Proposals:
    """``proposals`` with a remark added to the note of the first batch."""
    try:
        batch = next(proposals)
        while True:
            if remark:
                notes = [remark, getattr(batch, "note", "")]
                batch = Batch(batch, getattr(batch, "stage", ""), "; ".join(filter(None, notes)))
                remark = ""
            batch = proposals.send((yield batch))
    except StopIteration:
        return


def _note(reply: Reply, taken: int, dropped: Mapping[str, int]) -> str:
    note = f"{reply.proposed} proposed, {len(reply.configs)} valid, {taken} new"
    reasons = ", ".join(f"{n} x {reason}" for reason, n in dropped.items())
    return note + (f"; dropped: {reasons}" if reasons else "")


class _Known:
    """What was measured: before this search (``prior`` trials) and by it (``new``)."""

    def __init__(self, space: ConfigSpace, prior: Sequence[Trial]) -> None:
        self._space = space
        self._before = list(prior)
        self.new: list[Trial] = []
        self.keys = {space.key(t.config) for t in prior}
        self.prior = len(self.keys)

    @property
    def trials(self) -> list[Trial]:
        return self._before + self.new

    @property
    def best_ms(self) -> float:
        best = best_trial(self.trials)
        return math.inf if best is None else best.latency_ms

    def unknown(self, configs: Iterable[Config]) -> list[Config]:
        """Those of ``configs`` that were not measured, each once."""
        found = {key: config for config in configs if (key := self._space.key(config)) not in self.keys}
        return list(found.values())

    def learn(self, trials: Iterable[Trial]) -> None:
        for trial in trials:
            self.new.append(trial)
            self.keys.add(self._space.key(trial.config))
