"""Searches that learn nothing: a given set of configs, and random sampling."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.search import Context, Effort, Proposals
from pytest_kerneltune.search.history import History
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial

_COUNTS = {Effort.QUICK: 100, Effort.FULL: 1000}
_BATCH = 25


@dataclass(frozen=True)
class FiniteSearch:
    """Measures each of ``configs`` once, in order; without any, the whole space if it has at most ``limit`` configs.

    Raises UsageError where a config does not fit the space, or the space is larger than that.
    """

    configs: tuple[Config, ...] = ()
    limit: int = 1000

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:  # noqa: ARG003 - all of them, at any effort
        return cls(context.configs)

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        chosen = self.configs or self._all(space)
        if fresh := History(space, prior).unmeasured(map(space.canonical, chosen)):
            yield Batch(fresh, stage="FiniteSearch")

    def _all(self, space: ConfigSpace) -> list[Config]:
        found = list(islice(space.enumerate(), self.limit + 1)) if space.is_listable else []
        if not space.is_listable or len(found) > self.limit:
            raise UsageError(
                f"FiniteSearch measures at most {self.limit} configs, and this space has more, or too many to count: "
                "name the configs to measure with configs=, or use another search"
            )
        return found


@dataclass(frozen=True)
class RandomSearch:
    """The default, ``configs``, then distinct configs at random: ``count`` in all, prior trials not counted.

    Random means uniform, as far as ``ConfigSpace.sample_new`` can.
    """

    count: int = _COUNTS[Effort.QUICK]
    configs: tuple[Config, ...] = ()

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        return cls(_COUNTS[effort], context.configs)

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        history = History(space, prior)
        named = history.unmeasured([space.default, *map(space.canonical, self.configs)])[: self.count]
        left = self.count
        while left > 0:
            taken = history.keys | {space.key(c) for c in named}
            batch = named + space.sample_new(rng, min(_BATCH, left) - len(named), taken)
            if not batch:
                return
            # Nothing is learned from trials: a batch is asked for ahead of those that are measured.
            enough = max(1, len(history.under_way) + len(batch) - _BATCH)
            yield from history.measured(Batch(batch, "RandomSearch", enough=enough))
            named, left = [], left - len(batch)
