"""GaussianProcessSearch: Bayesian optimisation of the logarithm of the latency, beside a model of what fails.

What it is made of, and where that comes from:

1. A Gaussian process with a length scale for each parameter predicts latencies and how sure that is (``gaussian.py``);
   the config of greatest expected improvement is measured next (Jones et al., "Efficient Global Optimization of
   Expensive Black-Box Functions", 1998). Latencies slower than the median count less and less: how slow is slow need
   not be modelled, and the fast ones are told apart better.
2. A second process, fitted to works / fails by least squares (Rasmussen & Williams, 2006, section 6.5), says how
   probably a config works. Expected improvement is multiplied by a function of that (after Gardner et al., "Bayesian
   Optimization with Inequality Constraints", 2014): where a config probably works by 1, since the fastest ones tend to
   lie at the edge of what fits, and where it probably fails by less and less.
3. Ordered, divisible and categorical parameters each have their own idea of near (``coordinates.py``).
4. Expected improvement is maximised over random configs and the surroundings of the best ones, then by climbing single
   steps (Hutter et al., "Sequential Model-based Optimization for General Algorithm Configuration", 2011): what is left
   unfound there is lost for the whole search.
5. The start is a handful of configs far from each other, their sizes as far as possible powers of two. From there on
   every config is chosen with all that is known.
6. Where several configs are compiled at once, each one after the first is chosen as if those before it had turned out
   as predicted, which keeps a batch diverse ("kriging believer", Ginsbourger et al., 2010).
7. Trials of the same kernel at other shapes, or before an edit, give one more axis: what they predict. How much that
   is worth is learned like every other length scale.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from pytest_kerneltune.search import Context, Effort, Proposals, Related
from pytest_kerneltune.search.blas import one_thread
from pytest_kerneltune.search.candidates import Candidates
from pytest_kerneltune.search.coordinates import Points
from pytest_kerneltune.search.gaussian import Floats, GaussianProcess, log_expected_improvement
from pytest_kerneltune.search.history import History
from pytest_kerneltune.search.population import PopulationSearch
from pytest_kerneltune.search.transfer import standardised, telling, transferred
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial

STAGE = "GaussianProcessSearch"

_CONFIGS = {Effort.QUICK: 200, Effort.FULL: 1000}
_MOST_MODELLED = 200  # trials; the cost of a model grows with their cube
_BATCH_GROWTH = 60  # a batch is at least a sixtieth of what is known: keeps thinking linear in trials
_REFIT_GROWTH = 60  # hyperparameters are worth improving after a sixtieth more trials
_ITERATIONS = 30
_DOUBT = 0.1  # variance of the outcome of a config whose chance is known
_LEAST_CHANCE = 1e-6
_OVERCONFIDENCE = 2.0  # a variance that takes the hyperparameters for certain is too small; by how much is a guess


@dataclass(frozen=True)
class GaussianProcessSearch(PopulationSearch):
    """``initial_population`` configs, then batches of ``batch_size`` up to ``max_configs``, then single steps.

    Prior trials count as part of the initial population, not of ``max_configs``. Candidates are ``num_candidates``
    random configs and what is within ``radius`` steps of the best ``copies`` ones. Batches grow with the
    trials, from the second hundred on. Raises UsageError where an option is less than 1.
    """

    initial_population: int = 5
    max_configs: int = _CONFIGS[Effort.QUICK]
    batch_size: int = 1
    num_candidates: int = 500
    copies: int = 10
    radius: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "initial_population", "max_configs", "batch_size", "num_candidates", "copies", "radius")

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        shared = cls.shared_options(effort, context)
        return cls(max_configs=_CONFIGS.get(effort, cls.max_configs), batch_size=max(1, context.parallel), **shared)

    @property
    def used_related(self) -> Related:
        return self.related  # whatever the strategy: they are an axis of the models

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        history = History(space, prior)
        run = _Run(self, space, rng, history)
        if start := run.start():
            history.learn((yield Batch(start, STAGE)))
        last = len(prior) + self.max_configs
        while len(history) < last and (batch := run.batch(last - len(history))):
            history.learn((yield Batch(batch, STAGE)))
        yield from self.polish(space, history, 1, STAGE)
        yield from self.finish(space, history, STAGE)


class _Run:
    """The models of one search, and how it chooses."""

    def __init__(
        self, options: GaussianProcessSearch, space: ConfigSpace, rng: random.Random, history: History
    ) -> None:
        self._options, self._space, self._history = options, space, history
        self._coordinates = transferred(space, options.related)
        self._candidates = Candidates(
            space, rng, self._coordinates, history, options.num_candidates, options.copies, options.radius
        )
        self._latency = GaussianProcess(self._coordinates.groups, self._coordinates.count)
        self._success = GaussianProcess(self._coordinates.groups, self._coordinates.count)
        self._fitted = 0

    def start(self) -> list[Config]:
        """The named configs and, as far as there are few with the prior trials, some far from them."""
        named = self._options.named_configs(self._space, self._history, self._options.initial_population)
        missing = self._options.missing(self._history, named, self._options.initial_population)
        return named + self._candidates.spread(missing, [*(t.config for t in self._history.trials), *named])

    def batch(self, limit: int) -> list[Config]:
        """The next configs, at most ``limit``; none where no config is left."""
        count = min(limit, max(self._options.batch_size, len(self._history) // _BATCH_GROWTH))
        trials = telling(self._history.trials, _MOST_MODELLED)
        with one_thread():
            if any(t.ok for t in trials):
                return self._chosen(trials, count)
            return self._candidates.spread(count, [t.config for t in trials])

    def _chosen(self, trials: Sequence[Trial], count: int) -> list[Config]:
        points = self._coordinates.points([t.config for t in trials])
        works = np.array([t.ok for t in trials])
        targets = standardised(np.array([t.latency_ms for t in trials if t.ok]))
        self._learn(points, works, targets)
        chance = _Chance(self._success, works) if not works.all() else None
        known, chosen = points[works], list[Config]()
        self._candidates.gather()
        while len(chosen) < count:
            best = float(targets.min())

            def score(points: Points, best: float = best) -> Floats:
                mean, variance = self._latency.predict(points)
                worth = log_expected_improvement(mean, _OVERCONFIDENCE * variance, best)
                return worth if chance is None else worth + chance.discount(points)

            config = self._candidates.best(score)
            if config is None:
                break
            chosen.append(config)
            if len(chosen) < count:
                place = self._coordinates.points([config])
                known = np.concatenate([known, place])
                targets = np.append(targets, self._latency.predict(place)[0])
                self._latency.learn(known, targets)
        return chosen

    def _learn(self, points: Points, works: npt.NDArray[np.bool_], targets: Floats) -> None:
        """Update both models, their hyperparameters if enough is new."""
        is_due = len(self._history) - self._fitted >= max(1, len(self._history) / _REFIT_GROWTH)
        outcomes = np.where(works, 1.0, -1.0) - _tendency(works)
        lessons = [(self._latency, points[works], targets)]
        if not works.all():
            lessons.append((self._success, points, outcomes))
        for model, places, values in lessons:
            if is_due:
                model.fit(places, values, _ITERATIONS)
            else:
                model.learn(places, values)
        self._fitted = len(self._history) if is_due else self._fitted


class _Chance:
    """How probably a config works."""

    def __init__(self, success: GaussianProcess, works: npt.NDArray[np.bool_]) -> None:
        self._success, self._tendency = success, _tendency(works)

    def discount(self, points: Points) -> Floats:
        """What the logarithm of a config's worth loses by the risk that it fails: nothing where that is below half."""
        from scipy.special import ndtr

        mean, variance = self._success.predict(points)
        chance = ndtr((mean + self._tendency) / np.sqrt(variance + _DOUBT))
        return np.asarray(2 * np.log(np.clip(2 * chance, _LEAST_CHANCE, 1.0)))


def _tendency(works: npt.NDArray[np.bool_]) -> float:
    """Mean of the outcomes 1 (works) and -1 (fails)."""
    return float(2 * works.mean() - 1)
