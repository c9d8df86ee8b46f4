"""LFBOTreeSearch: a random forest learns which configs are good, and its trees say what to change in the best ones.

Likelihood-free Bayesian optimisation (Song et al., "A General Recipe for Likelihood-free Bayesian Optimization", 2022)
as Helion's autotuner (pytorch/helion) applies it to kernels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from pytest_kerneltune.search import Context, Effort, Proposals
from pytest_kerneltune.search.trees import Encoder, Floats, Forest, grow_forest
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial

STAGE = "LFBOTreeSearch"


@dataclass(frozen=True)
class LFBOTreeSearch:
    initial_population: int = 10
    copies: int = 3
    max_generations: int = 20
    num_neighbors: int = 100
    frac_selected: float = 0.05
    quantile: float = 0.2
    radius: int = 2
    similarity_penalty: float = 1.0
    num_trees: int = 50
    configs: tuple[Config, ...] = ()

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        generations = {Effort.QUICK: 20}.get(effort, 200)
        return cls(max_generations=generations, configs=context.configs)

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        run = _Run(self, space, rng, prior)
        batch = run.start() or run.generation()
        for _ in range(self.max_generations):
            if not batch:
                return
            run.learn((yield Batch(batch, STAGE)))
            batch = run.generation()
        while ring := run.ring():
            best = run.best_ms
            run.learn((yield Batch(ring, STAGE, "every step from the best config")))
            if run.best_ms >= best:
                return


class _Run:
    """What one search knows."""

    def __init__(self, options: LFBOTreeSearch, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial]) -> None:
        self._options, self._space, self._rng = options, space, rng
        self._encoder = Encoder(space)
        self._trials: list[Trial] = []
        self._seen: set[str] = set()
        self._reservoir: dict[str, Config] = {}
        self._count = max(1, round(options.frac_selected * options.num_neighbors))
        self.learn(prior)

    @property
    def best_ms(self) -> float:
        return min((t.latency_ms for t in self._trials), default=math.inf)

    def learn(self, trials: Iterable[Trial]) -> None:
        for trial in trials:
            self._trials.append(trial)
            self._seen.add(self._space.key(trial.config))

    def start(self) -> list[Config]:
        """The default, the user's configs and, as far as there are few prior trials, random ones."""
        named = self._fresh([self._space.default, *map(self._space.canonical, self._options.configs)])
        missing = self._options.initial_population - len(self._trials) - len(named)
        return list(named.values()) + self._space.sample_new(self._rng, max(0, missing), self._seen | named.keys())

    def generation(self) -> list[Config]:
        forest = self._fit()
        candidates = self._candidates(forest) if forest else {}
        if not forest or not candidates:
            return self._space.sample_new(self._rng, self._count, self._seen)
        return self._select(forest, list(candidates.values()))

    def ring(self) -> list[Config]:
        """The neighbours of the best config that were not measured."""
        return list(self._fresh(n for c in self._best(1) for n in self._space.neighbours(c)).values())

    def _fresh(self, configs: Iterable[Config]) -> dict[str, Config]:
        return {key: c for c in configs if (key := self._space.key(c)) not in self._seen}

    def _best(self, count: int) -> list[Config]:
        ranked = sorted((t for t in self._trials if t.ok), key=lambda t: t.latency_ms)
        return [t.config for t in ranked[:count]]

    def _fit(self) -> Forest | None:
        utility = _utility(np.array([t.latency_ms for t in self._trials]), self._options.quantile)
        good = utility > 0
        if not good.any() or good.all():
            return None
        rows = self._encoder.rows([t.config for t in self._trials])
        weights = np.concatenate([np.ones(len(rows)), utility[good] / utility[good].mean()])
        labels = np.concatenate([np.zeros(len(rows), bool), np.ones(good.sum(), bool)])
        seed = self._rng.getrandbits(32)
        return grow_forest(np.concatenate([rows, rows[good]]), labels, weights, self._options.num_trees, seed)

    def _candidates(self, forest: Forest) -> dict[str, Config]:
        bases = self._best(self._options.copies)
        share = self._options.num_neighbors // len(bases) + 1
        drafts: list[Config] = []
        for base in bases:
            drafts += self._space._steps(base, self._options.radius)
            drafts += [self._random_edit(base) for _ in range(share)]
            drafts += self._guided_edits(forest, base, share // 2)
        fresh = {key: c for key, c in self._fresh(drafts).items() if self._space.is_allowed(c)}
        return {**fresh, **self._random_candidates()}

    def _random_candidates(self) -> dict[str, Config]:
        self._reservoir = self._fresh(self._reservoir.values())
        if len(self._reservoir) < 100:
            for config in self._space.sample_new(self._rng, 100, self._seen):
                self._reservoir[self._space.key(config)] = config
        return self._reservoir

    def _random_edit(self, base: Config) -> Config:
        config = dict(base)
        count = min(len(config), self._rng.randint(2, 3))
        for name in self._rng.sample(self._space.names, count):
            if steps := self._space.parameters[name].neighbours(config[name], self._options.radius):
                config[name] = self._rng.choice(steps)
        return config

    def _guided_edits(self, forest: Forest, base: Config, count: int) -> list[Config]:
        trees = self._rng.sample(range(len(forest.roots)), min(count, len(forest.roots)))
        row = self._encoder.rows([base])[0]
        plans = [self._plan(forest.path(row, tree)) for tree in trees]
        drafts = [dict(base) for _ in trees]
        for step in range(max(map(len, plans))):
            options = [
                (i, {**draft, plan[step]: value})
                for i, (draft, plan) in enumerate(zip(drafts, plans, strict=True))
                if step < len(plan)
                for value in self._values(plan[step], draft)
            ]
            rows = self._encoder.rows([config for _, config in options])
            opinions = forest.opinions(rows, [trees[i] for i, _ in options])
            ranked: dict[int, tuple[float, float, Config]] = {}
            for (i, config), opinion in zip(options, opinions.tolist(), strict=True):
                rank = (opinion, self._rng.random(), config)
                if i not in ranked or rank[:2] > ranked[i][:2]:
                    ranked[i] = rank
            for i, (_, _, chosen) in ranked.items():
                drafts[i] = dict(chosen)
        return list(drafts)

    def _plan(self, columns: Iterable[int]) -> list[str]:
        names = [self._encoder.owners[c] for c in columns]
        return list(dict.fromkeys([*names, self._rng.choice(self._space.names)]))

    def _values(self, name: str, config: Config) -> list[object]:
        return [config[name], *self._space.parameters[name].neighbours(config[name], self._options.radius)]

    def _select(self, forest: Forest, candidates: Sequence[Config]) -> list[Config]:
        leaves = forest.leaves(self._encoder.rows(candidates))
        scores = forest.good[leaves].mean(axis=1) + [1e-9 * self._rng.random() for _ in candidates]
        likeness = np.zeros(len(candidates))
        picked: list[int] = []
        while len(picked) < min(self._count, len(candidates)):
            value = scores - self._options.similarity_penalty * likeness / max(1, len(picked))
            value[picked] = -np.inf
            picked.append(int(value.argmax()))
            likeness += (leaves == leaves[picked[-1]]).mean(axis=1)
        return [candidates[i] for i in picked]


def _utility(latencies: Floats, quantile: float) -> Floats:
    """How much better than the threshold each latency is, as a log ratio; where none is, 1 for what works at all."""
    works = np.isfinite(latencies)
    if not works.any():
        return np.zeros(len(latencies))
    logs = np.where(works, np.log(np.where(works, latencies, 1.0)), np.inf)
    utility = np.maximum(0.0, np.quantile(logs[works], quantile) - logs)
    return utility if utility.any() else works.astype(float)
