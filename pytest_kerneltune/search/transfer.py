"""What a model is given to learn from: this kernel's trials, and those of related kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_kerneltune.search import Related
from pytest_kerneltune.search.blas import one_thread
from pytest_kerneltune.search.coordinates import Coordinates, Floats, Points
from pytest_kerneltune.search.gaussian import GaussianProcess
from pytest_kerneltune.search.history import SHORTEST_MS
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Trial

_SOURCES = 3
_TRIALS = 100  # of each source
_FEWEST = 5  # that worked: less says nothing
_ITERATIONS = 30
_LEAST_SPREAD = 1e-9  # of logarithms: what is less is rounding


def standardised(latencies: Floats) -> Floats:
    """Logarithms of latencies in ms, those above their median compressed, with mean 0 and standard deviation 1."""
    logs = np.log(np.maximum(latencies, SHORTEST_MS))
    excess = np.maximum(logs - np.median(logs), 0.0)
    logs = logs - excess + np.log1p(excess)
    return np.asarray((logs - logs.mean()) / max(logs.std(), _LEAST_SPREAD))


def telling(trials: Sequence[Trial], count: int) -> list[Trial]:
    """At most ``count`` trials: all, or of many the fastest half and others taken at equal distances."""
    if len(trials) <= count:
        return list(trials)
    order = sorted(range(len(trials)), key=lambda i: trials[i].latency_ms)
    fastest, others = order[: count // 2], sorted(order[count // 2 :])
    stride = len(others) / (count - len(fastest))
    return [trials[i] for i in fastest] + [trials[others[int(i * stride)]] for i in range(count - len(fastest))]


def transferred(space: ConfigSpace, related: Related) -> Coordinates:
    """Coordinates of ``space``, with one more axis for each of ``related`` that holds enough to predict latencies from.

    At most three, the most alike. A model over them learns how much each axis is worth, and in which direction, so that
    a kernel whose fast configs are slow here is not trusted for the sake of another one.
    """
    usable = [[t for t in trials if space.contains(t.config)] for trials in related]
    sources = [trials for trials in usable if sum(t.ok for t in trials) >= _FEWEST][:_SOURCES]
    return _Predicted(space, sources) if sources else Coordinates(space)


class _Predicted(Coordinates):
    """Coordinates whose last axes are the latencies that each source predicts, in standard deviations."""

    def __init__(self, space: ConfigSpace, sources: Sequence[Sequence[Trial]]) -> None:
        super().__init__(space)
        self._predictions: dict[str, Floats] = {}
        with one_thread():
            self._models = [self._model(telling(trials, _TRIALS)) for trials in sources]
        self.layout = [*self.layout, *([np.array([self.width + i])] for i in range(len(sources)))]
        self.width += len(sources)

    def points(self, configs: Sequence[Config]) -> Points:
        plain = super().points(configs)
        keys = [self._space.key(c) for c in configs]
        if new := {key: i for i, key in enumerate(keys) if key not in self._predictions}:
            rows = plain[list(new.values())]
            means = np.column_stack([model.predict(rows)[0] for model in self._models])
            self._predictions.update(zip(new, means, strict=True))
        predicted = [self._predictions[key] for key in keys]
        return np.column_stack([plain, np.reshape(predicted, (len(configs), len(self._models)))])

    def _model(self, trials: Sequence[Trial]) -> GaussianProcess:
        """A model of one source, whose failures count as the slowest of what worked."""
        slowest = max(t.latency_ms for t in trials if t.ok)
        latencies = np.array([t.latency_ms if t.ok else slowest for t in trials])
        model = GaussianProcess(self.layout)
        model.fit(super().points([t.config for t in trials]), standardised(latencies), _ITERATIONS)
        return model
