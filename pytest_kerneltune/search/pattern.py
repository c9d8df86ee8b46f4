"""PatternSearch: walks from good configs by single steps, those first that helped before.

Direct search after Hooke and Jeeves ("'Direct Search' Solution of Numerical and Statistical Problems", 1961): around a
base point one parameter is moved at a time; what helped becomes the new base, and the same move is tried again at
once. Helion's autotuner (pytorch/helion) runs it from several base points, or copies, over discrete parameters, and
adds moves of two block sizes at once.

What differs here, and why. What a tuner pays for is configs measured, so that is what these were judged by, on recorded
spaces of real kernels (``comparison``):

1. The start is small: most of a random population of 30 or 100 is measured for nothing. Two copies, not five: a second
   base guards against a poor first one, further ones are slower descents.
2. A neighbourhood is not measured whole but a few steps at a time, over all copies the most promising first, and a copy
   moves as soon as one of them helps. Promising is a fast base and a step whose direction has gained most, on average,
   wherever it was tried; untried directions come before those that lost, near values before far ones. So a direction
   that helped is at once tried again, as in the original.
3. The base is never lost: a copy moves only to what is faster by ``min_improvement_delta``, and rests when it has
   failed as often as it has directions. Only measured configs are ruled out.
4. Which parameters are block sizes is unknown, so every two ordered ones may move at once; of these pairs only those
   that combine the base's few least harmful steps, which makes them few in spaces of many parameters.
5. A generation lasts until every copy rests. The next starts elsewhere instead of ending the search: from the best of
   some perturbed good configs, which lie nearer to other good ones than random configs, and a random one.
6. After the last generation every single step from the best config is tried, as long as that helps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any, Self, TypeAlias

from pytest_kerneltune.parameter import Parameter
from pytest_kerneltune.search import Context, Effort, Proposals
from pytest_kerneltune.search.history import SHORTEST_MS, History
from pytest_kerneltune.search.population import PopulationSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial

STAGE = "PatternSearch"

_GENERATIONS = {Effort.QUICK: 8, Effort.FULL: 20}
_BATCH = 3
_PAIRED = 6  # steps that are combined with each other
_PERTURBED = 3  # parameters of a perturbed config that are drawn anew, and configs that are perturbed
_DRAWS = 20  # attempts at a perturbed config that is allowed and new
_PER_STEP = 0.02  # logarithm of latency that a second step must promise, to come before an untried first one
_FAILURE = 1.0  # logarithm of latency that a failed step counts as having lost, and the most that any can gain or lose

_Direction: TypeAlias = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class PatternSearch(PopulationSearch):
    """The best ``copies`` of ``initial_population`` configs descend, then others, for ``max_generations`` descents.

    A copy moves to a neighbour that is faster by the fraction ``min_improvement_delta``. ``batch_size`` configs are
    measured at a time. Neighbours lie within ``radius`` steps.

    Raises UsageError where a count is less than 1 or ``min_improvement_delta`` less than 0.
    """

    initial_population: int = 6
    copies: int = 2
    max_generations: int = _GENERATIONS[Effort.QUICK]
    min_improvement_delta: float = 0.001
    radius: int = 1
    batch_size: int = _BATCH

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "initial_population", "copies", "max_generations", "radius", "batch_size")
        self._check_at_least(0, "min_improvement_delta")

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        return cls(
            max_generations=_GENERATIONS.get(effort, cls.max_generations),
            batch_size=max(_BATCH, context.parallel),
            **cls.shared_options(effort, context),
        )

    def propose(self, space: ConfigSpace, rng: Random, prior: Sequence[Trial] = ()) -> Proposals:
        history = History(space, prior)
        if start := self.starting_configs(space, rng, history, self.initial_population):
            history.learn((yield Batch(start, STAGE)))
        walk = _Walk(self, space, rng, history)
        walk.begin(history.best(self.copies))
        for generation in range(self.max_generations):
            if generation:
                if not (fresh := walk.elsewhere()):
                    break
                trials = yield Batch(fresh, STAGE, "elsewhere")
                history.learn(trials)
                walk.begin(sorted((t for t in trials if t.ok), key=lambda t: t.latency_ms)[:1])
            while batch := walk.promising():
                walk.learn((yield Batch(batch, STAGE)))
        yield from self.polish(space, history, self.radius, STAGE)
        yield from self.finish(space, history, STAGE)


@dataclass(frozen=True, eq=False)
class _Step:
    """One parameter set to ``value``, ``distance`` steps from its value in a base config."""

    name: str
    value: Any
    direction: _Direction
    distance: int
    is_ordered: bool


class _Compass:
    """Which way every parameter can go, and how much each direction gained where it was tried."""

    def __init__(self, space: ConfigSpace, radius: int) -> None:
        self._space, self._radius = space, radius
        self._ranks = {name: _ranking(p) for name, p in space.parameters.items()}
        self._learned: dict[_Direction, tuple[float, int]] = {}

    def steps(self, config: Config) -> list[_Step]:
        return [
            self._step(name, config[name], value)
            for name, parameter in self._space.parameters.items()
            for value in parameter.neighbours(config[name], self._radius)
        ]

    def _step(self, name: str, old: Any, new: Any) -> _Step:
        rank = self._ranks[name]
        if rank is None:
            return _Step(name, new, (name, repr(new)), 1, is_ordered=False)
        distance = rank(new) - rank(old)
        return _Step(name, new, (name, "+" if distance > 0 else "-"), abs(distance), is_ordered=True)

    def learn(self, step: _Step, loss: float) -> None:
        total, count = self._learned.get(step.direction, (0.0, 0))
        self._learned[step.direction] = total + min(max(loss, -_FAILURE), _FAILURE), count + 1

    def loss(self, step: _Step) -> float:
        """The logarithm of the factor by which a step is expected to change the latency; about 0 where unknown."""
        total, count = self._learned.get(step.direction, (0.0, 0))
        return total / (count + 1) + _PER_STEP * (step.distance - 1)


@dataclass(frozen=True)
class _Move:
    """A config and the steps to it from a base; ``tie`` orders equally promising ones."""

    config: Config
    key: str
    steps: tuple[_Step, ...]
    tie: float


class _Copy:
    """A base config and the moves from it."""

    def __init__(self, space: ConfigSpace, base: Trial, compass: _Compass, rng: Random) -> None:
        self._space, self._compass = space, compass
        self.base = base
        self._level = _log(base.latency_ms)
        self._misses = 0
        self._tie = rng.random
        here = space.key(base.config)
        reached = [(step, self._move(step)) for step in compass.steps(base.config)]
        felt = [(step, move) for step, move in reached if move is None or move.key != here]
        self._singles = [move for _, move in felt if move]
        self._refused = [step for step, move in felt if not move]
        self._directions = len({step.direction for step, _ in felt})
        self._losses: dict[_Step, float] = {}

    def _move(self, *steps: _Step) -> _Move | None:
        config = self._space.normalised({**self.base.config, **{s.name: s.value for s in steps}})
        return _Move(config, self._space.key(config), steps, self._tie()) if self._space.is_allowed(config) else None

    def learn(self, move: _Move, trial: Trial) -> None:
        self._misses += 1
        if len(move.steps) == 1:
            loss = _log(trial.latency_ms) - self._level if trial.ok else _FAILURE
            self._losses[move.steps[0]] = loss
            self._compass.learn(move.steps[0], loss)

    def ranked(self, known: set[str]) -> list[tuple[float, _Move]]:
        """The moves that were not measured, each with the expected logarithm of its latency."""
        if self._misses >= self._directions:
            return []
        singles = [(self._level + self._compass.loss(m.steps[0]), m) for m in self._singles if m.key not in known]
        return [*singles, *((self._level + loss, m) for loss, m in self._pairs() if m.key not in known)]

    def _pairs(self) -> Iterator[tuple[float, _Move]]:
        """Two ordered parameters moved at once, as far as one step each is known here, or is not allowed alone."""
        losses = {s: loss for s, loss in self._losses.items() if s.is_ordered and s.distance == 1}
        losses |= {s: self._compass.loss(s) for s in self._refused if s.is_ordered and s.distance == 1}
        least = sorted(losses, key=losses.__getitem__)[:_PAIRED]
        for one, other in combinations(least, 2):
            if one.name != other.name and (move := self._move(one, other)):
                yield losses[one] + losses[other] + _PER_STEP, move


class _Walk:
    """The copies of one search."""

    def __init__(self, options: PatternSearch, space: ConfigSpace, rng: Random, history: History) -> None:
        self._options, self._space, self._rng, self._history = options, space, rng, history
        self._compass = _Compass(space, options.radius)
        self._bases: set[str] = set()
        self._copies: list[_Copy] = []
        self._asked: list[tuple[_Copy, _Move]] = []

    def begin(self, bases: Iterable[Trial]) -> None:
        """Copies at ``bases``, but where there was one before."""
        for base in bases:
            key = self._space.key(base.config)
            if key not in self._bases:
                self._bases.add(key)
                self._copies.append(_Copy(self._space, base, self._compass, self._rng))

    def promising(self) -> list[Config]:
        """The next moves of all copies; none when all of them rest."""
        moves = [(score, m.tie, copy, m) for copy in self._copies for score, m in copy.ranked(self._history.keys)]
        distinct: dict[str, tuple[_Copy, _Move]] = {}
        for *_, copy, move in sorted(moves, key=lambda m: m[:2]):
            distinct.setdefault(move.key, (copy, move))
        self._asked = list(distinct.values())[: self._options.batch_size]
        if not self._asked:
            self._copies = []
        return [move.config for _, move in self._asked]

    def learn(self, trials: Sequence[Trial]) -> None:
        """Take in the trials of :meth:`promising` and move the copies that got faster."""
        self._history.learn(trials)
        steps = list(zip(self._asked, trials, strict=True))
        for (copy, move), trial in steps:
            copy.learn(move, trial)
        for copy in list(self._copies):
            own = [trial for (asker, _), trial in steps if asker is copy]
            best = min(own, key=lambda t: t.latency_ms, default=copy.base)
            if best.latency_ms < copy.base.latency_ms * (1 - self._options.min_improvement_delta):
                self._copies.remove(copy)
                self.begin([best])

    def elsewhere(self) -> list[Config]:
        """Perturbed good configs and a random one; random ones only while nothing works."""
        good = [t.config for t in self._history.best(_PERTURBED)]
        if not good:
            return self._space.sample_new(self._rng, self._options.initial_population, self._history.keys)
        drawn = (self._perturbed(self._rng.choice(good)) for _ in range(_DRAWS * self._options.batch_size))
        allowed = self._history.unmeasured(filter(self._space.is_allowed, drawn))[: self._options.batch_size - 1]
        taken = self._history.keys | {self._space.key(c) for c in allowed}
        return allowed + self._space.sample_new(self._rng, self._options.batch_size - len(allowed), taken)

    def _perturbed(self, config: Config) -> Config:
        names = self._rng.sample(self._space.names, min(_PERTURBED, len(self._space.names)))
        return self._space.normalised({**config, **{n: self._space.parameters[n].sample(self._rng) for n in names}})


def _ranking(parameter: Parameter) -> Callable[[Any], int] | None:
    """What tells the place of a value where they are different numbers; None for two values, or ones without order."""
    values = parameter.values() or ()
    if parameter.size <= 2:
        return None
    if isinstance(values, range):
        return values.index
    if not all(type(v) in (int, float) for v in values):
        return None
    return {value: rank for rank, value in enumerate(sorted(values))}.__getitem__


def _log(latency_ms: float) -> float:
    return math.log(max(latency_ms, SHORTEST_MS))
