"""LLMSeededSearch: a round with a language model, then another search, which asks none.

``LLMSeededLFBOTreeSearch`` is the same with that search fixed. They follow the searches of these names in Helion's
autotuner (pytorch/helion). What differs here, and why:

1. The second stage is any search, begins before the model has replied, and measures its own start meanwhile. So a space
   that it refuses is refused before anything is asked, and with a model that fails it is what it would be alone.
2. That head start is a handful of configs: a good model's first configs are better than any start, and what a tuner
   pays for is configs measured.
3. Once the model's configs are measured, the second stage begins anew with all that is known, failed configs too, as
   the trials of an earlier run. So it repeats nothing and tops no start up.
4. Configs of a poor model must not pass for the second stage's start: where none of them beats the head start, the rest
   of its own start is measured first.
5. The best config of a good model is refined first, by a few steps of a pattern search: while little is known, the next
   step from a good config is a better guess than what a surrogate of so few measurements makes of them. On recorded
   spaces that is a quarter of what a forest leaves to be gained after 10 further measurements.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.search import (
    DEFAULT_SEARCH,
    Context,
    Effort,
    Proposals,
    Related,
    Search,
    create,
    search_class,
    second_stages,
)
from pytest_kerneltune.search.fallback import Stage, as_batch, following, limited
from pytest_kerneltune.search.guided import LLMGuidedSearch
from pytest_kerneltune.search.history import History
from pytest_kerneltune.search.pattern import PatternSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial

REFINEMENT = "refinement"
"""Stage of the steps from the best config that the model proposed."""


@dataclass(frozen=True)
class LLMSeededSearch:
    """One round with a language model (``guide``), then ``second`` with all that was measured as its prior.

    At most ``head_start`` configs of the second stage are measured while the model writes its first reply; the guide's
    own start is not. At most ``refinement`` configs lie between the stages, where the model found a new best. Without a
    model, or with a guide of no rounds, it is ``second`` alone, unless the guide's fallback says otherwise. A preset's
    second stage is the context's.

    Raises UsageError where the second stage asks a model itself; a space that it refuses is refused.
    """

    uses_model: ClassVar[bool] = True

    guide: LLMGuidedSearch
    second: Search
    head_start: int = 5
    refinement: int = 6

    def __post_init__(self) -> None:
        _check_second_stage(type(self.second))

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        name = context.second_stage or DEFAULT_SEARCH
        _check_second_stage(search_class(name))
        guide, second = LLMGuidedSearch.preset(Effort.QUICK, context), create(name, effort, context)
        return cls(guide, second, head_start=context.at_most(cls.head_start))

    @property
    def used_related(self) -> Related:
        """The related trials that the model is shown, or that have a say in what the second stage measures."""
        used: Related = getattr(self.second, "used_related", ())
        return self.guide.used_related or used

    def with_rounds(self, rounds: int) -> Self:
        """The same search with another number of rounds with the model."""
        return replace(self, guide=self.guide.with_rounds(rounds))

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        second = self.second.propose(space, rng, prior)
        if not self.guide.has_part:
            return (yield from second)
        history = History(space, prior)
        first = self._first_batch(second)
        head, rest = _divided(first, self.head_start)
        known = len(history) + len(head)
        report = yield from self.guide.converse(space, rng, history, head)
        if len(history) == known:
            return (yield from _reported(_resumed(second, first, rest, history), report))
        second.close()
        report = yield from self._handed_over(space, rng, history, known, rest, report)
        return (yield from _reported(self.second.propose(space, rng, tuple(history.trials)), report))

    def _handed_over(
        self, space: ConfigSpace, rng: random.Random, history: History, known: int, rest: Batch, report: Batch
    ) -> Stage:
        """What comes before the second stage begins anew: the ``rest`` of its start, or steps from the model's best."""
        if not _is_poor(history, known):
            steps = PatternSearch(initial_population=1, max_generations=1)
            return (yield from limited(steps, space, rng, history, self.refinement, REFINEMENT, report))
        if left := history.unmeasured(rest):
            history.learn((yield Batch(left, rest.stage, report.note, counts=report.counts)))
            return Batch(())
        return report

    def _first_batch(self, second: Proposals) -> Batch:
        """What the second stage begins with; raises its UsageError, if it has one, before anything is asked."""
        try:
            return as_batch(next(second))
        except StopIteration:
            return Batch(())
        except UsageError as error:
            raise UsageError(f"{type(self).__name__}: its second stage refuses this space: {error}") from None


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


def _is_poor(history: History, known: int) -> bool:
    """Whether nothing measured since ``known`` trials were known is faster than the best of those."""
    return history.best_ms >= min((t.latency_ms for t in history.trials[:known]), default=0.0)


def _resumed(second: Proposals, first: Sequence[Config], rest: Batch, history: History) -> Proposals:
    """``second`` from its ``first`` batch on, of which all but ``rest`` is measured."""
    if rest:
        history.learn((yield rest))
    batch = following(second, [history.trial_of(config) for config in first]) if first else None
    while batch is not None:
        batch = following(second, (yield batch))


def _reported(proposals: Proposals, report: Batch) -> Proposals:
    """``proposals`` whose first batch has the note and the counts of ``report`` too; returns it where there is none."""
    batch = next(proposals, None)
    while batch is not None:
        given = as_batch(batch)
        notes = "; ".join(filter(None, (report.note, given.note)))
        trials = yield Batch(given, given.stage, notes, given.retime, {**given.counts, **report.counts}, given.enough)
        report = Batch(())
        batch = following(proposals, trials)
    return report


def _divided(batch: Batch, size: int) -> tuple[Batch, Batch]:
    return Batch(batch[:size], batch.stage, batch.note), Batch(batch[size:], batch.stage)
