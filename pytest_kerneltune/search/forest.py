"""LFBOPatternSearch and LFBOTreeSearch: a random forest learns which configs are good, and picks among many candidates.

Likelihood-free Bayesian optimisation (Song et al., "A General Recipe for Likelihood-free Bayesian Optimization", 2022)
turns optimisation into classification: every measured config is an example of "not good", and those faster than a
threshold are also examples of "good", weighted by how much faster. The classifier's probability of "good" then ranks
configs as expected improvement would. Helion's autotuner (pytorch/helion) brought it to kernels: a random forest,
candidates near the best configs, and picks that are penalised for landing in the same leaves as earlier ones. In
LFBOPatternSearch the candidates are random edits of the best configs; in LFBOTreeSearch half of the edits are what
single trees of the forest advise. All else is common to both.

What differs here, and why. What a tuner pays for is configs measured, so that is what these were judged by, on recorded
spaces of real kernels (``comparison``):

1. The start is small and a generation a handful of configs; trees advise from the first generation on. A large random
   start is where most of a small budget goes: one of 20 costs more than a quarter of the lead over random sampling
   that one of 8 has after 50 configs.
2. Several thresholds share the trees. One alone leaves most measurements without a say: too strict while little is
   known, too lax to tell the best from the good later.
3. Gains are ratios of latencies (differences of logarithms), so that neither the unit nor a slow outlier matters.
   Failures are "not good"; while hardly anything works, whatever works is good. Trees of their own learn what fails,
   and mark down what does so more probably than not (``classifier.Classifier.scores``).
4. The best config is read from all trials: it cannot be lost, and only what is faster is progress. Only measured
   configs are ruled out as candidates, and a generation's size does not depend on how many candidates there are.
5. Steps and edits compete with random configs, and every few generations without progress only random ones are
   considered. So the search leaves a basin that it has used up, and ends only with its generations or the space.
6. Trees split by products and ratios of sizes too (``features.PairEncoder``): what a kernel asks of the hardware is
   such a product. On the recorded spaces that is worth a fifth of the lead over random sampling after 50 configs.
7. A generation is refilled as soon as a share of it is known: a slow compile holds up nothing. Picks are penalised for
   landing in the same leaves as what is under way, too.
8. After the last generation every single step from the best config is tried, as long as that helps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.search import Context, Effort, Proposals
from pytest_kerneltune.search.classifier import Classifier, fit
from pytest_kerneltune.search.edits import Editor
from pytest_kerneltune.search.features import PairEncoder
from pytest_kerneltune.search.history import History
from pytest_kerneltune.search.population import PopulationSearch
from pytest_kerneltune.search.trees import Floats, Forest
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Trial

_GENERATIONS = {Effort.QUICK: 40, Effort.FULL: 100}
_FEWEST_GENERATIONS = 10  # however many configs are compiled at once
_RANDOM_CANDIDATES = 100
_REFIT_GROWTH = 40  # a forest is worth refitting after a fortieth more trials: keeps thinking linear in trials
_TIE = 1e-9


@dataclass(frozen=True, kw_only=True)
class LFBOSearch(PopulationSearch):
    """What both searches are but for their edits: a start of ``initial_population`` configs, then generations.

    In each of ``max_generations``, ``num_neighbors`` configs are made by edits within ``radius`` steps of the best
    ``copies`` configs. With the single steps from these and random configs they are the candidates, of which
    ``frac_selected`` times ``num_neighbors`` are measured, more where ``parallel`` is more (up to as many as are known)
    or several hundred are known: those most probably good, less ``similarity_penalty`` times the share of trees in
    which they share a leaf with the generation's earlier picks. The ``num_trees`` trees are divided among thresholds
    at ``quantiles`` of the latencies. After each ``patience`` generations without progress the candidates are random
    configs only.

    Raises UsageError where a count is less than 1 or a fraction not within (0, 1].
    """

    advised: ClassVar[float]
    """The share of the edits that trees advise."""

    initial_population: int = 8
    copies: int = 3
    max_generations: int = _GENERATIONS[Effort.QUICK]
    num_neighbors: int = 100
    frac_selected: float = 0.05
    quantiles: tuple[float, ...] = (0.05, 0.1, 0.2, 0.35, 0.5)
    patience: int = 4
    radius: int = 2
    similarity_penalty: float = 1.0
    num_trees: int = 50
    parallel: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("initial_population", "copies", "max_generations", "num_neighbors", "patience", "radius", "parallel")
        self._check_at_least(1, *counts)
        name = type(self).__name__
        if not self.quantiles or not all(0 < f <= 1 for f in (self.frac_selected, *self.quantiles)):
            raise UsageError(f"{name}: frac_selected and every one of quantiles must be within (0, 1]")
        if self.num_trees < len(self.quantiles):
            raise UsageError(f"{name}: num_trees={self.num_trees} is less than one for each of quantiles")

    @property
    def selected(self) -> int:
        """Configs in a generation, unless more are compiled at once or many are known."""
        return max(1, round(self.frac_selected * self.num_neighbors))

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        parallel = max(1, context.parallel)
        start = max(cls.initial_population, context.at_most(parallel))
        usual = cls(**cls.shared_options(effort, context), initial_population=start, parallel=parallel)
        # As many configs in all, however many are compiled at once.
        share = usual.selected / max(usual.selected, usual.parallel)
        generations = max(_FEWEST_GENERATIONS, math.ceil(share * _GENERATIONS.get(effort, cls.max_generations)))
        return replace(usual, max_generations=generations)

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        stage = type(self).__name__
        history = History(space, prior)
        chooser = _Chooser(self, space, rng, history)
        if start := self.starting_configs(space, rng, history, self.initial_population):
            yield from history.flow(start, stage)
        while (batch := chooser.batch()) or history.under_way:
            yield from history.flow(batch, stage)
        yield from self.polish(space, history, 1, stage)
        yield from self.finish(space, history, stage)


@dataclass(frozen=True, kw_only=True)
class LFBOPatternSearch(LFBOSearch):
    """LFBOSearch whose edits are random: two or three parameters, each a step away."""

    advised: ClassVar[float] = 0.0


@dataclass(frozen=True, kw_only=True)
class LFBOTreeSearch(LFBOSearch):
    """LFBOSearch half of whose edits are those that single trees advise; the others are random."""

    advised: ClassVar[float] = 0.5


class _Chooser:
    """Chooses generations by what is known."""

    def __init__(self, options: LFBOSearch, space: ConfigSpace, rng: random.Random, history: History) -> None:
        self._options, self._space, self._rng, self._history = options, space, rng, history
        self._encoder = PairEncoder(space, rng)
        self._editor = Editor(space, self._encoder, rng, options.radius)
        self._random: list[Config] = []
        self._drawn = self._detours = 0
        self._asked = self._idle = 0.0
        self._last = 1.0
        self._best_ms = math.inf

    def batch(self) -> list[Config]:
        """What to measure next: as much of a generation as is not under way, while there are generations left.

        Nothing where no config is left.
        """
        room = self._count - len(self._history.under_way)
        if room <= 0 or self._asked >= self._options.max_generations:
            return []
        self._note_progress()
        classifier = self._fit()
        candidates = self._candidates(classifier.good) if classifier else []
        if not classifier or not candidates:
            chosen = self._space.sample_new(self._rng, room, self._history.keys)
        else:
            chosen = self._select(classifier, candidates, min(room, len(candidates)))
        self._last = 1.0 if len(chosen) < room else room / self._count
        self._asked += self._last
        return chosen

    def _note_progress(self) -> None:
        """Count the generations without progress."""
        if self._history.best_ms < self._best_ms:
            self._idle, self._detours = 0.0, 0
        else:
            self._idle += self._last
        self._best_ms = self._history.best_ms

    @property
    def _count(self) -> int:
        """Configs in a generation; the compilers' number, but choosing must not lag behind measuring."""
        known = len(self._history) + len(self._history.under_way)
        return max(self._options.selected, min(self._options.parallel, known), known // _REFIT_GROWTH)

    def _fit(self) -> Classifier | None:
        trials = self._history.trials
        rows = self._encoder.rows([t.config for t in trials])
        latencies = np.array([t.latency_ms for t in trials])
        return fit(rows, latencies, self._options.quantiles, self._options.num_trees, self._rng)

    def _candidates(self, forest: Forest) -> list[Config]:
        if self._idle >= self._options.patience * (self._detours + 1):
            self._detours += 1
            return self._random_candidates()
        bases = [t.config for t in self._history.best(self._options.copies)]
        near = [n for base in bases for n in self._space.neighbours(base, self._options.radius)]
        near += [e for base in bases for e in self._edits(forest, base, len(bases))]
        return self._history.unmeasured([*near, *self._random_candidates()])

    def _edits(self, forest: Forest, base: Config, bases: int) -> list[Config]:
        """Allowed edits of ``base``: its share of ``num_neighbors``."""
        count = self._options.num_neighbors / bases
        advised = math.ceil(self._options.advised * count)
        edits = self._editor.by_trees(forest, base, advised)
        edits += [self._editor.at_random(base) for _ in range(math.ceil(count) - advised)]
        return [c for c in map(self._space.normalised, edits) if self._space.is_allowed(c)]

    def _random_candidates(self) -> list[Config]:
        """Random configs, kept from one generation to the next until half of them are measured."""
        self._random = self._history.unmeasured(self._random)
        if len(self._random) <= self._drawn // 2:
            self._random = self._space.sample_new(self._rng, _RANDOM_CANDIDATES, self._history.keys)
            self._drawn = len(self._random)
        return self._random

    def _select(self, classifier: Classifier, candidates: Sequence[Config], count: int) -> list[Config]:
        rows = self._encoder.rows(candidates)
        leaves = classifier.good.leaves(rows)
        scores = classifier.scores(rows, leaves) + [_TIE * self._rng.random() for _ in candidates]
        earlier = [classifier.good.leaves(self._encoder.rows([c])) for c in self._history.under_way.values()]
        likeness = sum((_likeness(leaves, each) for each in earlier), start=np.zeros(len(candidates)))
        picked: list[int] = []
        while len(picked) < count:
            worth = scores - self._options.similarity_penalty * likeness / max(1, len(earlier) + len(picked))
            worth[picked] = -np.inf
            picked.append(int(worth.argmax()))
            likeness += _likeness(leaves, leaves[picked[-1]])
        return [candidates[i] for i in picked]


def _likeness(leaves: Any, of: Any) -> Floats:
    """The share of trees in which each row of ``leaves`` is in the same leaf as the config ``of`` these leaves."""
    return np.asarray((leaves == of).mean(axis=1))
