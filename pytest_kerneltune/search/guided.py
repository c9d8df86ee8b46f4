"""Searches that ask a language model which configs to measure.

``LLMGuidedSearch`` is a conversation: a first batch from the model's knowledge of such kernels, further ones from what
was measured. ``LLMSeededSearch`` holds one round of it and gives everything measured to a second search, which asks no
model; ``LLMSeededLFBOTreeSearch`` is the same with that search fixed. They follow the searches of the same names in
Helion's autotuner (pytorch/helion), with these differences:

- A model that is missing or fails ends the conversation, not the search.
- A reply is repaired where it has one reading, and the model is told what was dropped and why.
- The conversation quotes the configs that a reply held, not its text, so that its length is bounded.
- The second stage is any search, and gets all trials of the first, failed ones too, as those of an earlier run. So it
  starts from the best that both stages know, and neither measures a config again nor tops its start up with random
  configs where the first stage measured enough.
- A second stage that cannot search the space says so before the model is asked.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, TypeAlias

from pytest_kerneltune.errors import LLMError, UsageError
from pytest_kerneltune.search import (
    DEFAULT_SEARCH,
    Context,
    Effort,
    Message,
    Proposals,
    Related,
    Search,
    Subject,
    Submit,
    create,
    search_class,
    second_stages,
)
from pytest_kerneltune.search.dialogue import Request, first_request, refine_request, reply_text
from pytest_kerneltune.search.history import History
from pytest_kerneltune.search.replies import Reply, parse_reply
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial

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
        """As :meth:`propose`; returns all trials, prior ones first, and in a line why it ended early."""
        history = History(space, prior)
        opening = first_request(self.subject, space, self.configs_per_round, self.configs, prior)
        answer = self._ask(opening, 1)
        if start := self._start(space, rng, history):
            history.learn((yield Batch(start, START)))
        exchanges: list[Message] = []
        number, weak = 1, 0
        while answer is not None:
            try:
                reply = parse_reply(answer.result(), space)
            except LLMError as error:
                return history.trials, f"{MODEL}: {error}"
            batch, dropped = self._batch(reply, history)
            note = _note(reply, len(batch), dropped)
            if not batch:
                return history.trials, f"{MODEL}: {note}"
            before = history.best_ms
            history.learn((yield Batch(batch, MODEL, note)))
            weak = 0 if history.best_ms < before * (1 - self.min_gain) else weak + 1
            number += 1
            question = refine_request(space, history.trials, self.configs_per_round, number, dropped)
            exchanges += [Message("assistant", reply_text(reply.configs)), question]
            request = Request([*opening, *exchanges[-2 * _REMEMBERED :]], opening.schema)
            answer = self._ask(request, number) if weak < self.patience else None
        return history.trials, ""

    def _ask(self, request: Request, number: int) -> Future[str] | None:
        return None if self.model is None or number > self.rounds else self.model(request)

    def _start(self, space: ConfigSpace, rng: random.Random, history: History) -> list[Config]:
        fixed = history.unmeasured([space.default, *map(space.canonical, self.configs)])
        seen = history.keys | {space.key(c) for c in fixed}
        return fixed + space.sample_new(rng, max(0, self.initial_random - len(history)), seen)

    def _batch(self, reply: Reply, history: History) -> tuple[list[Config], dict[str, int]]:
        """The configs to measure, and what was dropped for which reason."""
        new = history.unmeasured(reply.configs)
        batch = new[: self.configs_per_round]
        dropped = {"measured before": len(reply.configs) - len(new), "more than asked for": len(new) - len(batch)}
        return batch, {**reply.dropped, **{reason: n for reason, n in dropped.items() if n}}


@dataclass(frozen=True)
class LLMSeededSearch:
    """One round with a language model (``guide``), then ``second`` with all that was measured as its prior.

    Without a model, or with a guide of no rounds, it is ``second`` alone. A preset's second stage is the context's.
    Raises UsageError where the second stage asks a model itself; a space that it refuses is refused.
    """

    uses_model: ClassVar[bool] = True

    guide: LLMGuidedSearch
    second: Search

    def __post_init__(self) -> None:
        _check_second_stage(type(self.second))

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        name = context.second_stage or DEFAULT_SEARCH
        _check_second_stage(search_class(name))
        return cls(LLMGuidedSearch.preset(Effort.QUICK, context), create(name, effort, context))

    @property
    def used_related(self) -> Related:
        """The related trials that have a say in what the second stage measures."""
        used: Related = getattr(self.second, "used_related", ())
        return used

    def with_rounds(self, rounds: int) -> Self:
        """The same search with another number of rounds with the model."""
        return replace(self, guide=self.guide.with_rounds(rounds))

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        trials, remark = list(prior), ""
        if self.guide.model is not None and self.guide.rounds > 0:
            self._check_space(space)
            trials, remark = yield from self.guide.converse(space, rng, prior)
        yield from _remarked(self.second.propose(space, rng, trials), remark)

    def _check_space(self, space: ConfigSpace) -> None:
        """Raise the second stage's UsageError, if it has one, before anything is asked or measured."""
        trial_run = self.second.propose(space, random.Random(0))
        try:
            next(trial_run, None)
        except UsageError as error:
            raise UsageError(f"{type(self).__name__}: its second stage refuses this space: {error}") from None
        trial_run.close()


@dataclass(frozen=True)
class LLMSeededLFBOTreeSearch(LLMSeededSearch):
    """``LLMSeededSearch`` whose preset has LFBOTreeSearch as its second stage, whatever the context says."""

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        return super().preset(effort, replace(context, second_stage="LFBOTreeSearch"))


def _check_second_stage(search: type) -> None:
    if getattr(search, "uses_model", False):
        raise UsageError(
            f"{search.__name__} cannot be the second stage of a search that asks a language model, as it asks one "
            f"itself; these can: {', '.join(second_stages())}"
        )


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
