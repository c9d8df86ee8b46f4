"""Searches that learn nothing: a given set of configs, and random sampling."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.search import Context, Effort, Proposals
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial

_COUNTS = {Effort.QUICK: 100, Effort.FULL: 1000}
_BATCH = 25
_COUNTED = 200_000  # configs before the constraint, each of which the constraint is asked about


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
        known = {space.key(t.config) for t in prior}
        chosen = {space.key(c): c for c in map(space.canonical, self.configs or self._all(space))}
        if fresh := [c for key, c in chosen.items() if key not in known]:
            yield Batch(fresh, stage="FiniteSearch")

    def _all(self, space: ConfigSpace) -> list[Config]:
        countable = space.size <= _COUNTED and all(p.values() is not None for p in space.parameters.values())
        found = list(islice(space.enumerate(), self.limit + 1)) if countable else []
        if not countable or len(found) > self.limit:
            raise UsageError(
                f"FiniteSearch measures at most {self.limit} configs, and this space has more, or too many to count: "
                "name the configs to measure with configs=, or use another search"
            )
        return found


@dataclass(frozen=True)
class RandomSearch:
    """The default, ``configs``, then distinct configs drawn uniformly: ``count`` in all, prior trials not counted."""

    count: int = _COUNTS[Effort.QUICK]
    configs: tuple[Config, ...] = ()

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        return cls(_COUNTS[effort], context.configs)

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        seen = {space.key(t.config) for t in prior}
        first = {space.key(c): c for c in (space.default, *map(space.canonical, self.configs))}
        batch = [c for key, c in first.items() if key not in seen][: self.count]
        left = self.count - len(batch)
        while True:
            seen |= {space.key(c) for c in batch}
            fill = space.sample_new(rng, min(_BATCH - len(batch), left), seen) if left > 0 else []
            batch, left = [*batch, *fill], left - len(fill)
            if not batch:
                return
            seen |= {space.key(c) for c in fill}
            yield Batch(batch, stage="RandomSearch")
            batch = []
