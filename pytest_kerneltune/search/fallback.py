"""What takes the place of a language model that could not be asked; see ``search.FALLBACKS``."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from typing import TypeAlias

from pytest_kerneltune.search import Proposals, Search
from pytest_kerneltune.search.history import History
from pytest_kerneltune.search.pattern import PatternSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial

FALLBACK = "fallback"
"""Stage of the configs measured in the place of the model's."""

Stage: TypeAlias = Generator[Sequence[Config], Sequence[Trial], Batch]
"""Proposals that return a Batch without configs: a note and counts that no other batch has."""


def instead(
    fallback: str, space: ConfigSpace, rng: random.Random, history: History, counts: Sequence[int], report: Batch
) -> Stage:
    """Propose what ``fallback`` says in the place of the ``counts`` configs that a model was wanted for, by round.

    ``report`` holds the note and counts of the first batch; it is returned where there is none.
    """
    if fallback == "random":
        return (yield from _random(space, rng, history, counts[0], report))
    if fallback == "pattern":
        return (yield from limited(PatternSearch(), space, rng, history, sum(counts), FALLBACK, report))
    return report


def _random(space: ConfigSpace, rng: random.Random, history: History, count: int, report: Batch) -> Stage:
    batch = space.sample_new(rng, count, history.keys)
    if not batch:
        return report
    history.learn((yield Batch(batch, FALLBACK, report.note, counts=report.counts)))
    return Batch(())


def limited(
    search: Search, space: ConfigSpace, rng: random.Random, history: History, count: int, stage: str, report: Batch
) -> Stage:
    """At most ``count`` configs of ``search``, going on from ``history``, as a stage of that name.

    ``report`` holds the note and counts of the first batch; it is returned where there is none.
    """
    proposals = search.propose(space, rng, tuple(history.trials))
    batch = next(proposals, None) if count > 0 else None
    while batch is not None:
        trials = yield Batch(batch[:count], stage, report.note, counts=report.counts)
        history.learn(trials)
        report, count = Batch(()), count - len(batch)
        batch = following(proposals, trials) if count > 0 else None
    proposals.close()
    return report


def following(proposals: Proposals, trials: Sequence[Trial]) -> Batch | None:
    """The batch after ``trials``; None where there is none."""
    try:
        return as_batch(proposals.send(trials))
    except StopIteration:
        return None


def as_batch(batch: Sequence[Config]) -> Batch:
    """``batch``, which says nothing about its configs where it was none."""
    return batch if isinstance(batch, Batch) else Batch(batch)
