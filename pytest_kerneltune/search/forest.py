"""LFBOTreeSearch: a random forest learns which configs are good, and its trees say what to change in the best ones.

Likelihood-free Bayesian optimisation (Song et al., "A General Recipe for Likelihood-free Bayesian Optimization", 2022)
turns optimisation into classification: every measured config is an example of "not good", and those faster than a
threshold are also examples of "good", weighted by how much faster. The classifier's probability of "good" then ranks
configs as expected improvement would. Helion's autotuner (pytorch/helion) brought it to kernels: a random forest,
candidates near the best configs, edited as single trees advise, and picks that are penalised for landing in the same
leaves as earlier ones.

What differs here, and why. What a tuner pays for is configs measured, so that is what these were judged by, on recorded
spaces of real kernels (``tests/benchmarks/compare_searches.py``):

1. The start is small and a generation a handful of configs; trees advise from the first generation on. A large random
   start is where most of a small budget goes: one of 20 costs more than a quarter of the lead over random sampling
   that one of 8 has after 50 configs.
2. Several thresholds share the trees. One alone leaves most measurements without a say: too strict while little is
   known, too lax to tell the best from the good later.
3. Gains are ratios of latencies (differences of logarithms), so that neither the unit nor a slow outlier matters.
   Failures are "not good"; while hardly anything works, whatever works is good.
4. The best config is read from all trials: it cannot be lost, and only what is faster is progress. Only measured
   configs are ruled out as candidates, and a generation's size does not depend on how many candidates there are.
5. Steps and edits compete with random configs, and every few generations without progress only random ones are
   considered. So the search leaves a basin that it has used up, and ends only with its generations or the space.
6. After the last generation every single step from the best config is tried, as long as that helps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.search import Context, Effort, Proposals
from pytest_kerneltune.search.edits import Editor
from pytest_kerneltune.search.features import Encoder
from pytest_kerneltune.search.trees import Floats, Forest, flatten, grow_trees
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial

STAGE = "LFBOTreeSearch"

_GENERATIONS = {Effort.QUICK: 20, Effort.FULL: 100}
_RANDOM_CANDIDATES = 100
_REFIT_GROWTH = 40  # a forest is worth refitting after a fortieth more trials: keeps thinking linear in trials
_SHORTEST_MS = 1e-9
_TIE = 1e-9


@dataclass(frozen=True)
class LFBOTreeSearch:
    """The default and ``configs``, random configs up to ``initial_population``, then ``max_generations`` generations.

    In each, ``num_neighbors`` configs are made by edits within ``radius`` steps of the best ``copies`` configs, half of
    them on the advice of trees. With their single steps and random configs they are the candidates, of which
    ``frac_selected`` times ``num_neighbors`` are measured, more after several hundred trials: those most probably
    good, less ``similarity_penalty`` times the share of trees in which they share a leaf with the generation's earlier
    picks. The ``num_trees`` trees are divided among thresholds at ``quantiles`` of the latencies. After each
    ``patience`` generations without progress the candidates are random configs only. Prior trials count as part of the
    initial population.

    Raises UsageError where a count is less than 1 or a fraction not within (0, 1].
    """

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
    configs: tuple[Config, ...] = ()

    def __post_init__(self) -> None:
        for name in ("initial_population", "copies", "max_generations", "num_neighbors", "patience", "radius"):
            if getattr(self, name) < 1:
                raise UsageError(f"LFBOTreeSearch: {name}={getattr(self, name)} must be at least 1")
        if not self.quantiles or not all(0 < f <= 1 for f in (self.frac_selected, *self.quantiles)):
            raise UsageError("LFBOTreeSearch: frac_selected and every one of quantiles must be within (0, 1]")
        if self.num_trees < len(self.quantiles):
            raise UsageError(f"LFBOTreeSearch: num_trees={self.num_trees} is less than one for each of quantiles")

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        return cls(max_generations=_GENERATIONS.get(effort, cls.max_generations), configs=context.configs)

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        run = _Run(self, space, rng, prior)
        if start := run.start():
            run.learn((yield Batch(start, STAGE)))
        for _ in range(self.max_generations):
            if not (batch := run.generation()):
                return
            run.learn((yield Batch(batch, STAGE)))
        while ring := run.ring():
            best_ms = run.best_ms
            run.learn((yield Batch(ring, STAGE, "every single step from the best config")))
            if run.best_ms >= best_ms:
                return


class _Run:
    """What one search knows, and how it chooses."""

    def __init__(self, options: LFBOTreeSearch, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial]) -> None:
        self._options, self._space, self._rng = options, space, rng
        self._encoder = Encoder(space)
        self._editor = Editor(space, self._encoder, rng, options.radius)
        self._trials: list[Trial] = []
        self._seen: set[str] = set()
        self._random: dict[str, Config] = {}
        self._drawn = self._idle = 0
        self.best_ms = math.inf
        self.learn(prior)

    @property
    def _count(self) -> int:
        """Configs in the next generation."""
        selected = round(self._options.frac_selected * self._options.num_neighbors)
        return max(1, selected, len(self._trials) // _REFIT_GROWTH)

    def learn(self, trials: Iterable[Trial]) -> None:
        """Take in a batch, or the prior trials."""
        before = self.best_ms
        for trial in trials:
            self._trials.append(trial)
            self._seen.add(self._space.key(trial.config))
            self.best_ms = min(self.best_ms, trial.latency_ms)
        self._idle = 0 if self.best_ms < before else self._idle + 1

    def start(self) -> list[Config]:
        """The default, the user's configs and, as far as there are few prior trials, random ones."""
        named = self._fresh([self._space.default, *map(self._space.canonical, self._options.configs)])
        missing = self._options.initial_population - len(self._trials) - len(named)
        return [*named.values(), *self._space.sample_new(self._rng, max(0, missing), self._seen | named.keys())]

    def generation(self) -> list[Config]:
        """What to measure next; nothing where no config is left."""
        forest = self._fit()
        candidates = self._candidates(forest) if forest else {}
        if not forest or not candidates:
            return self._space.sample_new(self._rng, self._count, self._seen)
        return self._select(forest, list(candidates.values()))

    def ring(self) -> list[Config]:
        """The single steps from the best config that were not measured."""
        return list(self._fresh(n for c in self._best(1) for n in self._space.neighbours(c)).values())

    def _fresh(self, configs: Iterable[Config]) -> dict[str, Config]:
        return {key: c for c in configs if (key := self._space.key(c)) not in self._seen}

    def _best(self, count: int) -> list[Config]:
        ranked = sorted((t for t in self._trials if t.ok), key=lambda t: t.latency_ms)
        return [t.config for t in ranked[:count]]

    def _fit(self) -> Forest | None:
        """A forest that tells good configs from the rest; None where the trials do not say what is good."""
        rows = self._encoder.rows([t.config for t in self._trials])
        latencies = np.array([t.latency_ms for t in self._trials])
        share = self._options.num_trees // len(self._options.quantiles)
        trees: list[Any] = []
        for quantile in self._options.quantiles:
            gains = _gains(latencies, quantile)
            good = gains > 0
            if good.any():
                labels = np.repeat([False, True], [len(rows), good.sum()])
                weights = np.concatenate([np.ones(len(rows)), gains[good] / gains[good].mean()])
                seed = self._rng.getrandbits(32)
                trees += grow_trees(np.concatenate([rows, rows[good]]), labels, weights, share, seed)
        return flatten(trees) if trees else None

    def _candidates(self, forest: Forest) -> dict[str, Config]:
        if self._idle and self._idle % self._options.patience == 0:
            return self._random_candidates()
        bases = self._best(self._options.copies)
        share = math.ceil(self._options.num_neighbors / len(bases) / 2)
        edits = [e for base in bases for e in self._editor.by_trees(forest, base, share)]
        edits += [self._editor.at_random(base) for base in bases for _ in range(share)]
        allowed = {key: c for key, c in self._fresh(edits).items() if self._space.is_allowed(c)}
        steps = self._fresh(n for base in bases for n in self._space.neighbours(base, self._options.radius))
        return {**steps, **allowed, **self._random_candidates()}

    def _random_candidates(self) -> dict[str, Config]:
        """Random configs, kept from one generation to the next until half of them are measured."""
        self._random = self._fresh(self._random.values())
        if len(self._random) <= self._drawn // 2:
            self._random = self._fresh(self._space.sample_new(self._rng, _RANDOM_CANDIDATES, self._seen))
            self._drawn = len(self._random)
        return self._random

    def _select(self, forest: Forest, candidates: Sequence[Config]) -> list[Config]:
        leaves = forest.leaves(self._encoder.rows(candidates))
        scores = forest.good[leaves].mean(axis=1) + [_TIE * self._rng.random() for _ in candidates]
        likeness = np.zeros(len(candidates))
        picked: list[int] = []
        count = min(self._count, len(candidates))
        while len(picked) < count:
            worth = scores - self._options.similarity_penalty * likeness / max(1, len(picked))
            worth[picked] = -np.inf
            picked.append(int(worth.argmax()))
            likeness += (leaves == leaves[picked[-1]]).mean(axis=1)
        return [candidates[i] for i in picked]


def _gains(latencies: Floats, quantile: float) -> Floats:
    """By how much each latency is below the threshold, as a difference of logarithms; failures gain nothing.

    Where none is below it and some failed, what works gains 1.
    """
    works = np.isfinite(latencies)
    if not works.any():
        return np.zeros(len(latencies))
    logs = np.log(np.maximum(latencies, _SHORTEST_MS))
    gains = np.maximum(0.0, np.quantile(logs[works], quantile) - logs)
    return gains if gains.any() or works.all() else works.astype(float)
