"""What the searches with an initial population share: where it comes from, and what is done to the best config at last.

Where it comes from, and resetting the best config's parameters, follow Helion's autotuner (pytorch/helion): its
strategies for an initial population and its finishing phase.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, islice, zip_longest
from random import Random
from typing import Any

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.search import Context, Effort, Proposals, Related
from pytest_kerneltune.search.history import History
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config

_MOST_RELATED = 20


class Strategy(StrEnum):
    """What an initial population holds after the default config and the user's."""

    FROM_RANDOM = "from_random"
    FROM_BEST_AVAILABLE = "from_best_available"


@dataclass(frozen=True, kw_only=True)
class PopulationSearch:
    """Options of a search that starts from a population.

    The population is the default and ``configs``; with ``from_best_available`` also the fastest configs of ``related``
    trials. Random configs make it up to its size, always with ``from_random``, else if ``pad_random``; related ones
    are then at most half of it, since what was fast there may be slow here, and at most all of it otherwise. Prior
    trials count as part of it. After the search proper come at most ``finishing_rounds`` of simplifying the best
    config.
    """

    initial_population_strategy: Strategy = Strategy.FROM_RANDOM
    pad_random: bool = True
    finishing_rounds: int = 0
    configs: tuple[Config, ...] = ()
    related: Related = ()

    def __post_init__(self) -> None:
        strategy = self.initial_population_strategy
        if strategy not in tuple(Strategy):
            known = ", ".join(Strategy)
            raise UsageError(f"{type(self).__name__}: initial_population_strategy={strategy!r} is not one of {known}")
        self._check_at_least(0, "finishing_rounds")

    def _check_at_least(self, least: float, *names: str) -> None:
        """Raise UsageError naming the option that is less than ``least``."""
        for name in names:
            if not getattr(self, name) >= least:
                raise UsageError(f"{type(self).__name__}: {name}={getattr(self, name)} must be at least {least}")

    @staticmethod
    def shared_options(effort: Effort, context: Context) -> dict[str, Any]:
        """The options of this class at the sizes of ``effort``."""
        quick = effort is not Effort.FULL
        return {
            "initial_population_strategy": Strategy.FROM_BEST_AVAILABLE if quick else Strategy.FROM_RANDOM,
            "configs": context.configs,
            "related": context.related,
        }

    @property
    def used_related(self) -> Related:
        """The related trials that have a say in what is measured."""
        return self.related if self.initial_population_strategy == Strategy.FROM_BEST_AVAILABLE else ()

    def starting_configs(self, space: ConfigSpace, rng: Random, history: History, size: int) -> list[Config]:
        """The initial population less what was measured: ``size`` with the history's, more if more are named."""
        named = self.named_configs(space, history, size)
        missing = self.missing(history, named, size)
        return named + space.sample_new(rng, missing, history.keys | {space.key(c) for c in named})

    def named_configs(self, space: ConfigSpace, history: History, size: int) -> list[Config]:
        """The part of :meth:`starting_configs` that is not random."""
        named = [space.default, *map(space.canonical, self.configs)]
        if self.initial_population_strategy == Strategy.FROM_BEST_AVAILABLE:
            room = math.ceil(size / 2) if self.pad_random else size
            named += best_related(space, self.related, min(room, _MOST_RELATED))
        return history.unmeasured(named)

    def missing(self, history: History, named: Sequence[Config], size: int) -> int:
        """How many random configs make ``named`` and the history up to an initial population of ``size``."""
        pads = self.pad_random or self.initial_population_strategy == Strategy.FROM_RANDOM
        return max(0, size - len(history) - len(named)) if pads else 0

    def polish(self, space: ConfigSpace, history: History, radius: int, stage: str) -> Proposals:
        """Every config within ``radius`` single steps of the best one, as long as one of them is faster."""
        while history.best_ms < math.inf:
            ring = history.unmeasured(space.neighbours(history.best(1)[0].config, radius))
            if not ring and not history.under_way:
                return
            yield from history.flow(ring, stage, "every single step from the best config")

    def finish(self, space: ConfigSpace, history: History, stage: str) -> Proposals:
        """Reset the best config's parameters to their defaults, one at a time and then all at once that did no harm."""
        for _ in range(self.finishing_rounds):
            best = next(iter(history.best(1)), None)
            if best is None:
                return
            changed = [name for name in space.names if best.config[name] != space.default[name]]
            resets = {name: space.normalised({**best.config, name: space.default[name]}) for name in changed}
            if singles := history.unmeasured(filter(space.is_allowed, resets.values())):
                note = "parameters of the best config reset to their defaults"
                yield from history.measured(Batch(singles, stage, note))
            latency = {space.key(t.config): t.latency_ms for t in history.trials}
            harmless = [n for n, c in resets.items() if latency.get(space.key(c), math.inf) <= best.latency_ms]
            together = space.normalised({**best.config, **{name: space.default[name] for name in harmless}})
            if space.is_allowed(together) and (joint := history.unmeasured([together])):
                yield from history.measured(Batch(joint, stage, "all resets at once that did no harm"))
            if history.best_ms >= best.latency_ms:
                return


def best_related(space: ConfigSpace, related: Related, count: int) -> list[Config]:
    """At most ``count`` configs of ``space``: the fastest of each of ``related``, then the second of each, ..."""
    ranked = [
        [t.config for t in sorted(trials, key=lambda t: t.latency_ms) if t.ok and space.contains(t.config)]
        for trials in related
    ]
    in_turn = (c for c in chain.from_iterable(zip_longest(*ranked)) if c is not None)
    distinct = {space.key(c): c for c in map(space.canonical, in_turn)}
    return list(islice(distinct.values(), count))
