"""What a search has measured so far."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Sequence

from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Trial

SHORTEST_MS = 1e-9
"""What a shorter latency counts as where logarithms are taken."""


class History:
    """Trials in the order in which they were made, prior ones first; only measured configs count as known.

    A config has one trial: what is learned of a known one (it was timed again) takes the place of what was.
    """

    def __init__(self, space: ConfigSpace, prior: Sequence[Trial] = ()) -> None:
        self._space = space
        self._places: dict[str, int] = {}
        self._ranked: list[tuple[float, int]] = []
        self.trials: list[Trial] = []
        self.keys: set[str] = set()
        """The keys of all measured configs."""
        self.best_ms = math.inf
        """The least latency so far; inf while nothing worked."""
        self.learn(prior)

    def __len__(self) -> int:
        return len(self.trials)

    def learn(self, trials: Iterable[Trial]) -> None:
        for trial in trials:
            key = self._space.key(trial.config)
            place = self._places.setdefault(key, len(self.trials))
            if place == len(self.trials):
                self.trials.append(trial)
                self.keys.add(key)
            else:
                self._forget(place)
                self.trials[place] = trial
            if trial.ok:
                insort(self._ranked, (trial.latency_ms, place))
        self.best_ms = self._ranked[0][0] if self._ranked else math.inf

    def _forget(self, place: int) -> None:
        if (old := self.trials[place]).ok:
            self._ranked.remove((old.latency_ms, place))

    def trial_of(self, config: Config) -> Trial:
        """The trial of a measured config; raises KeyError for any other."""
        return self.trials[self._places[self._space.key(config)]]

    def best(self, count: int) -> list[Trial]:
        """The fastest ``count`` trials that worked, fastest first, the earliest first among equals."""
        return [self.trials[place] for _, place in self._ranked[:count]]

    def unmeasured(self, configs: Iterable[Config]) -> list[Config]:
        """Those of ``configs`` that were not measured, each once, in their order."""
        new: dict[str, Config] = {}
        for config in configs:
            key = self._space.key(config)
            if key not in self.keys:
                new.setdefault(key, config)
        return list(new.values())
