"""How probably a config is good, and how probably it works at all: what a random forest learns from trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from pytest_kerneltune.search.features import Rows
from pytest_kerneltune.search.history import SHORTEST_MS
from pytest_kerneltune.search.trees import Floats, Forest, flatten, grow_trees

_WORKS_TREES = 20


@dataclass(frozen=True)
class Classifier:
    """``good`` tells good configs from the rest; ``works`` what works from what fails, None while nothing failed."""

    good: Forest
    works: Forest | None

    def scores(self, rows: Rows, leaves: Any) -> Floats:
        """How much each row promises, within 0 and 1; ``leaves`` are its leaves in ``good``.

        The probability of being good, which failures lower already. But they are far from all that is not good: where
        a config fails more probably than not, the score is marked down by that. Multiplying by the probability of
        working throughout would count failures twice, and keep away from the edge of what works, where large tiles,
        often the fastest, are.
        """
        good = np.asarray(self.good.good[leaves].mean(axis=1))
        if self.works is None:
            return good
        works = self.works.good[self.works.leaves(rows)].mean(axis=1)
        return np.asarray(good * np.minimum(1.0, 2 * works))


def fit(rows: Rows, latencies: Floats, quantiles: Sequence[float], num_trees: int, rng: Random) -> Classifier | None:
    """What ``rows`` and their ``latencies`` in ms (inf: failed) teach; None where they do not say what is good.

    The ``num_trees`` trees of "good" are divided among thresholds at ``quantiles`` of the latencies.
    """
    trees: list[Any] = []
    for quantile in quantiles:
        gains = _gains(latencies, quantile)
        good = gains > 0
        if good.any():
            labels = np.repeat([False, True], [len(rows), good.sum()])
            weights = np.concatenate([np.ones(len(rows)), gains[good] / gains[good].mean()])
            examples = np.concatenate([rows, rows[good]])
            trees += grow_trees(examples, labels, weights, num_trees // len(quantiles), rng.getrandbits(32))
    return Classifier(flatten(trees), _fit_works(rows, np.isfinite(latencies), rng)) if trees else None


def _fit_works(rows: Rows, works: Any, rng: Random) -> Forest | None:
    if works.all() or not works.any():
        return None
    return flatten(grow_trees(rows, works, np.ones(len(rows)), _WORKS_TREES, rng.getrandbits(32)))


def _gains(latencies: Floats, quantile: float) -> Floats:
    """By how much each latency is below the threshold, as a difference of logarithms; failures gain nothing.

    Where none is below it and some failed, what works gains 1.
    """
    works = np.isfinite(latencies)
    if not works.any():
        return np.zeros(len(latencies))
    logs = np.log(np.maximum(latencies, SHORTEST_MS))
    gains = np.maximum(0.0, np.quantile(logs[works], quantile) - logs)
    return gains if gains.any() or works.all() else works.astype(float)
