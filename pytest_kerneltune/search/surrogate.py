"""GaussianProcessSearch: Bayesian optimisation of the logarithm of the latency, beside a model of what fails.

What it is made of, and where that comes from:

1. A Gaussian process predicts latencies and how sure that is (``gaussian.py``): a sum of what each parameter does on
   its own, what each pair does, and so on, with a length scale and a weight for each axis (``covariance.py``). The
   config of greatest expected improvement is measured next (Jones et al., "Efficient Global Optimization of Expensive
   Black-Box Functions", 1998). Latencies slower than the median count less and less: how slow is slow need not be
   modelled, and the fast ones are told apart better.
2. A second process, fitted to works / fails by least squares (Rasmussen & Williams, 2006, section 6.5), says how
   probably a config works, and a third, where compiled code tells what it asks for, how probably it keeps to the
   device's limits (``feasibility.py``). Expected improvement is multiplied by a function of that (after Gardner et
   al., "Bayesian Optimization with Inequality Constraints", 2014): where a config probably works by 1, since the
   fastest ones tend to lie at the edge of what fits, and where it probably fails by less and less.
3. Ordered, divisible and categorical parameters each have their own idea of near (``coordinates.py``).
4. Expected improvement is maximised over random configs and the surroundings of the best ones, then by climbing single
   steps (Hutter et al., "Sequential Model-based Optimization for General Algorithm Configuration", 2011): what is left
   unfound there is lost for the whole search.
5. The start is a handful of configs far from each other, their sizes as far as possible powers of two, their launch
   options usual ones. From there on every config is chosen with all that is known.
6. Where several configs are compiled at once, each is chosen as if those under way had turned out as predicted, which
   keeps them diverse ("kriging believer", Ginsbourger et al., 2010). As many are kept under way as are compiled at
   once; as soon as a share of them is known, as many new ones take their places, so that a slow compile holds up
   nothing.
7. Trials of the same kernel at other shapes, before an edit or on another device give an axis each: what they predict.
   How much each is worth is learned like every other length scale.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from pytest_kerneltune.search import Context, Effort, Proposals, Related
from pytest_kerneltune.search.blas import one_thread
from pytest_kerneltune.search.candidates import Candidates
from pytest_kerneltune.search.coordinates import Floats, Points
from pytest_kerneltune.search.feasibility import Feasibility, teach
from pytest_kerneltune.search.gaussian import GaussianProcess, log_expected_improvement
from pytest_kerneltune.search.history import History
from pytest_kerneltune.search.population import PopulationSearch
from pytest_kerneltune.search.transfer import standardised, telling, transferred
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Trial

STAGE = "GaussianProcessSearch"

_CONFIGS = {Effort.QUICK: 200, Effort.FULL: 1000}
_MOST_MODELLED = 200  # trials; the cost of a model grows with their cube
_BATCH_GROWTH = 60  # a batch is at least a sixtieth of what is known: keeps thinking linear in trials
_REFIT_GROWTH = 60  # hyperparameters are worth improving after a sixtieth more trials
_AHEAD = 2  # configs in the first batch for each compiler that the initial population would leave idle


@dataclass(frozen=True)
class GaussianProcessSearch(PopulationSearch):
    """``initial_population`` configs, then ``batch_size`` under way at a time up to ``max_configs``, then single steps.

    Where nothing is known yet, the start is of ``first_batch`` configs if that is more: compilers are ready before a
    GPU is. Prior trials count as part of the initial population, not of ``max_configs``. Candidates are
    ``num_candidates`` random configs and what is within ``radius`` steps of the best ``copies`` ones. Batches grow with
    the trials, from the second hundred on. Raises UsageError where an option is less than 1.
    """

    initial_population: int = 5
    first_batch: int = 1
    max_configs: int = _CONFIGS[Effort.QUICK]
    batch_size: int = 1
    num_candidates: int = 500
    copies: int = 10
    radius: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = (
            "initial_population",
            "first_batch",
            "max_configs",
            "batch_size",
            "num_candidates",
            "copies",
            "radius",
        )
        self._check_at_least(1, *counts)

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        parallel = max(1, context.parallel)
        return cls(
            first_batch=max(1, context.at_most(_AHEAD * (parallel - cls.initial_population))),
            max_configs=_CONFIGS.get(effort, cls.max_configs),
            batch_size=parallel,
            **cls.shared_options(effort, context),
        )

    @property
    def used_related(self) -> Related:
        return self.related  # whatever the strategy: they are an axis of the models

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        history = History(space, prior)
        run = _Run(self, space, rng, history)
        if start := run.start():
            yield from history.flow(start, STAGE)
        last = len(prior) + self.max_configs
        while (batch := run.batch(last)) or history.under_way:
            yield from history.flow(batch, STAGE)
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
        self._latency = GaussianProcess(self._coordinates.layout)
        self._feasibility = Feasibility(self._coordinates)
        self._fitted = 0

    def start(self) -> list[Config]:
        """The named configs and, as far as there are few with the prior trials, some far from them."""
        options = self._options
        named = options.named_configs(self._space, self._history, options.initial_population)
        size = max(options.initial_population, 1 if self._history.trials else options.first_batch)
        missing = options.missing(self._history, named, size)
        return named + self._candidates.spread(missing, [*(t.config for t in self._history.trials), *named])

    def batch(self, last: int) -> list[Config]:
        """The next configs, until ``last`` are known or under way; none where no config is left."""
        history = self._history
        room = max(self._options.batch_size, len(history) // _BATCH_GROWTH) - len(history.under_way)
        count = min(room, last - len(history) - len(history.under_way))
        if count <= 0:
            return []
        trials = telling(history.trials, _MOST_MODELLED)
        with one_thread():
            if any(t.ok for t in trials):
                return self._chosen(trials, count)
            return self._candidates.spread(count, [*(t.config for t in trials), *history.under_way.values()])

    def _chosen(self, trials: Sequence[Trial], count: int) -> list[Config]:
        points = self._coordinates.points([t.config for t in trials])
        known = points[[t.ok for t in trials]]
        targets = standardised(np.array([t.latency_ms for t in trials if t.ok]))
        is_due = len(self._history) - self._fitted >= max(1, len(self._history) / _REFIT_GROWTH)
        self._fitted = len(self._history) if is_due else self._fitted
        teach(self._latency, known, targets, is_due)
        self._feasibility.learn(points, trials, is_due)
        believer = _Believer(self._latency, known, targets)
        believer.believe(self._coordinates.points(list(self._history.under_way.values())))
        self._candidates.gather()
        chosen: list[Config] = []
        while len(chosen) < count:

            def score(points: Points) -> Floats:
                return believer.worth(points) + self._feasibility.discount(points)

            config = self._candidates.best(score)
            if config is None:
                break
            chosen.append(config)
            if len(chosen) < count:
                believer.believe(self._coordinates.points([config]))
        return chosen


class _Believer:
    """What a config promises, where others that are under way turn out as predicted."""

    def __init__(self, latency: GaussianProcess, points: Points, targets: Floats) -> None:
        self._latency, self._points, self._targets = latency, points, targets

    def believe(self, points: Points) -> None:
        """Take what is predicted of ``points`` for measured."""
        if len(points):
            predicted = self._latency.predict(points)[0]
            self._points = np.concatenate([self._points, points])
            self._targets = np.append(self._targets, predicted)
            self._latency.learn(self._points, self._targets)

    def worth(self, points: Points) -> Floats:
        return log_expected_improvement(*self._latency.predict(points), float(self._targets.min()))
