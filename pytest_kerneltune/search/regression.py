"""A regression forest that says which of many candidates may be fast."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Protocol

import numpy as np

from pytest_kerneltune.search.features import PairEncoder
from pytest_kerneltune.search.history import SHORTEST_MS, History
from pytest_kerneltune.search.trees import Floats, grow_regression_trees
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Trial

_REFIT_GROWTH = 40  # a forest is worth growing anew after a fortieth more trials: keeps thinking linear in trials


class SurrogateOptions(Protocol):
    """What :class:`Surrogate` is told."""

    @property
    def surrogate_threshold(self) -> int: ...
    @property
    def refit_frequency(self) -> int: ...
    @property
    def n_estimators(self) -> int: ...


class Surrogate:
    """Ranks configs by what a random forest (Breiman, 2001), grown on all trials, expects of them.

    The forest knows the logarithm of latency, of which a failure has the largest seen. A config's worth is the mean of
    the trees less their standard deviation: what it may achieve, as in sequential model-based configuration (Hutter,
    Hoos and Leyton-Brown, 2011).
    """

    def __init__(self, options: SurrogateOptions, space: ConfigSpace, rng: Random) -> None:
        self._options, self._rng, self._encoder = options, rng, PairEncoder(space, rng)
        self._trees: list[Any] = []
        self._known = 0

    def ranking(self, history: History, configs: Sequence[Config]) -> list[int]:
        """Indices of ``configs``, the most promising first; at random while too little is known."""
        if len(history) < self._options.surrogate_threshold or not history.best(1):
            return self._rng.sample(range(len(configs)), len(configs))
        step = max(self._options.refit_frequency, len(history) // _REFIT_GROWTH)
        if not self._trees or len(history) >= self._known + step:
            rows = self._encoder.rows([t.config for t in history.trials])
            seed = self._rng.getrandbits(32)
            self._trees = grow_regression_trees(rows, levels(history.trials), self._options.n_estimators, seed)
            self._known = len(history)
        rows = self._encoder.rows(configs)
        said = np.array([tree.predict(rows)[:, 0] for tree in self._trees])
        worth = said.mean(axis=0) - said.std(axis=0)
        return [int(i) for i in worth.argsort(kind="stable")]


def levels(trials: Sequence[Trial]) -> Floats:
    """The logarithms of the latencies, failures as slow as the slowest; some trial must have worked."""
    latencies = np.array([t.latency_ms for t in trials])
    slowest = latencies[np.isfinite(latencies)].max()
    return np.asarray(np.log(np.clip(latencies, SHORTEST_MS, max(slowest, SHORTEST_MS))))
