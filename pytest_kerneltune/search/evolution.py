"""DifferentialEvolutionSearch: a population whose differences say how to change its best. DESurrogateHybrid ranks them.

Differential evolution (Storn and Price, "Differential Evolution - A Simple and Efficient Heuristic for Global
Optimization over Continuous Spaces", 1997) adds the difference of two members to a third, crosses the sum with a
fourth, the target, and lets the child take the target's place if it is no worse. On discrete parameters the sum is
``Parameter.combine``, as in Helion's autotuner (pytorch/helion), whose DESurrogateHybrid measures only those of many
children that a regression forest expects to be fast.

What differs here, and why. What a tuner pays for is configs measured, so that is what these were judged by, on recorded
spaces of real kernels (``comparison``):

1. The population is small, and there are more generations instead: 40 members are nothing but random sampling for as
   long as many users search at all.
2. The third member is one of the best fifth, as in JADE (Zhang and Sanderson, 2009): the way from a random member to a
   good config takes more measurements than a tuner has. A child takes its target's place before the next batch.
3. Children that were measured, or break the constraint, are drawn again; where that is in vain, random configs come in
   and take the place of the slowest members they beat. After three generations without progress all members but the
   best fifth give way to random ones: a population that has become uniform has no differences left to learn from.
4. The hybrid's forest is asked from a dozen trials on and learns from all of them. Failures count as the slowest config
   seen: a forest that never sees them recommends them. Children are ranked by what they may achieve, the forest's mean
   less its trees' disagreement, as the mean alone keeps to what is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Self, TypeAlias

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.search import Context, Effort, Proposals
from pytest_kerneltune.search.history import History
from pytest_kerneltune.search.population import PopulationSearch
from pytest_kerneltune.search.regression import Surrogate
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial

_POPULATION = 10
_GENERATIONS = {Effort.QUICK: 20, Effort.FULL: 100}
_BATCH = 3
_RENEWED = 3  # generations without progress after which the population is renewed
_BEST_SHARE = 0.2  # of the members, at least two of them
_DRAWS = 30  # attempts at a child that is allowed and new

_Child: TypeAlias = tuple[Trial | None, Config]
"""The target whose place the config may take, None for a random config."""


@dataclass(frozen=True, kw_only=True)
class DifferentialEvolutionSearch(PopulationSearch):
    """``population_size`` members, each of them once a target in each of ``max_generations`` generations.

    A child has a parameter of the mutant with probability ``crossover_rate``, else of its target. ``batch_size``
    children are measured at a time. After ``patience`` generations in which the best config has not become faster by
    the fraction ``min_improvement_delta`` the search ends; None: only with its generations or the space.

    Raises UsageError where a count is less than 1, or a fraction out of its range.
    """

    population_size: int = _POPULATION
    max_generations: int = _GENERATIONS[Effort.QUICK]
    crossover_rate: float = 0.8
    min_improvement_delta: float = 0.001
    patience: int | None = None
    batch_size: int = _BATCH

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "population_size", "max_generations", "batch_size")
        self._check_at_least(0, "crossover_rate", "min_improvement_delta")
        if self.crossover_rate > 1:
            raise UsageError(f"{type(self).__name__}: crossover_rate={self.crossover_rate} must be at most 1")
        if self.patience is not None:
            self._check_at_least(1, "patience")

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        return cls(
            max_generations=_GENERATIONS.get(effort, cls.max_generations),
            batch_size=max(_BATCH, context.parallel),
            **cls.shared_options(effort, context),
        )

    def propose(self, space: ConfigSpace, rng: Random, prior: Sequence[Trial] = ()) -> Proposals:
        stage = type(self).__name__
        history = History(space, prior)
        if start := self.starting_configs(space, rng, history, self.population_size):
            history.learn((yield Batch(start, stage)))
        if history.trials:
            yield from self._evolve(_Population(self, space, rng, history), history, stage)
        yield from self.finish(space, history, stage)

    def _evolve(self, population: _Population, history: History, stage: str) -> Proposals:
        idle = 0
        for _ in range(self.max_generations):
            best_ms = history.best_ms
            for first in range(0, self.population_size, self.batch_size):
                if not (children := population.children(min(self.batch_size, self.population_size - first))):
                    return
                population.learn((yield Batch(children, stage)))
            if idle and idle % _RENEWED == 0 and (fresh := population.renewal()):
                population.learn((yield Batch(fresh, stage, "a new population around the best")))
            idle = 0 if history.best_ms < best_ms * (1 - self.min_improvement_delta) else idle + 1
            if idle == self.patience:
                return

    def surrogate(self, space: ConfigSpace, rng: Random) -> Surrogate | None:
        """What ranks children, if more are drawn than measured."""
        return None

    @property
    def drawn_each(self) -> int:
        """Children drawn for each that is measured."""
        return 1


@dataclass(frozen=True, kw_only=True)
class DESurrogateHybrid(DifferentialEvolutionSearch):
    """Differential evolution that draws ``candidate_ratio`` children for each that it measures, and picks by a forest.

    The forest of ``n_estimators`` regression trees is asked from ``surrogate_threshold`` trials on, and grown anew
    after ``refit_frequency`` further ones, or a fortieth of all if that is more.
    """

    surrogate_threshold: int = 12
    candidate_ratio: int = 5
    refit_frequency: int = 3
    n_estimators: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "surrogate_threshold", "candidate_ratio", "refit_frequency", "n_estimators")

    def surrogate(self, space: ConfigSpace, rng: Random) -> Surrogate:
        return Surrogate(self, space, rng)

    @property
    def drawn_each(self) -> int:
        return self.candidate_ratio


class _Population:
    """The members of one search, and their children."""

    def __init__(self, options: DifferentialEvolutionSearch, space: ConfigSpace, rng: Random, history: History) -> None:
        self._options, self._space, self._rng, self._history = options, space, rng, history
        self._members = sorted(history.trials, key=lambda t: t.latency_ms)[: options.population_size]
        self._surrogate = options.surrogate(space, rng)
        self._turn = 0
        self._asked: list[_Child] = []

    def children(self, count: int) -> list[Config]:
        """The next ``count`` configs to measure; fewer, or none, where the space has no more."""
        drawn: dict[str, _Child] = {}
        for _ in range(count * self._options.drawn_each):
            self._add_child(drawn)
        candidates = list(drawn.values())
        if self._surrogate and candidates:
            order = self._surrogate.ranking(self._history, [config for _, config in candidates])
            candidates = [candidates[i] for i in order]
        self._asked = candidates[:count]
        taken = self._history.keys | {self._space.key(c) for _, c in self._asked}
        self._asked += [(None, c) for c in self._space.sample_new(self._rng, count - len(self._asked), taken)]
        return [config for _, config in self._asked]

    def _add_child(self, drawn: dict[str, _Child]) -> None:
        target = self._members[self._turn % len(self._members)]
        self._turn += 1
        for _ in range(_DRAWS):
            config = self._space.normalised(self._child(target))
            key = self._space.key(config)
            if key not in drawn and key not in self._history.keys and self._space.is_allowed(config):
                drawn[key] = (target, config)
                return

    def _child(self, target: Trial) -> dict[str, Any]:
        base = self._rng.choice(self._best())
        left, right = self._rng.sample(self._members, 2) if len(self._members) > 1 else (base, target)
        certain = self._rng.choice(self._space.names or [""])
        child = dict(target.config)
        for name, parameter in self._space.parameters.items():
            if name == certain or self._rng.random() < self._options.crossover_rate:
                value, one, other = (member.config[name] for member in (base, left, right))
                child[name] = parameter.combine(value, one, other, self._rng)
        return child

    def renewal(self) -> list[Config]:
        """Random configs that replace all members but the best."""
        self._members = self._best()
        missing = max(0, self._options.population_size - len(self._members))
        fresh = self._space.sample_new(self._rng, missing, self._history.keys)
        self._asked = [(None, c) for c in fresh]
        return fresh

    def _best(self) -> list[Trial]:
        count = max(2, round(_BEST_SHARE * len(self._members)))
        return sorted(self._members, key=lambda t: t.latency_ms)[:count]

    def learn(self, trials: Sequence[Trial]) -> None:
        """Take in the trials of the configs asked for last; those that are no slower take their targets' places."""
        self._history.learn(trials)
        for (target, _), trial in zip(self._asked, trials, strict=True):
            if len(self._members) < self._options.population_size:
                self._members.append(trial)
                continue
            rival = target if target in self._members else max(self._members, key=lambda t: t.latency_ms)
            if trial.latency_ms <= rival.latency_ms:
                self._members[self._members.index(rival)] = trial
