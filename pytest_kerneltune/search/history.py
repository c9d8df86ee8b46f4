"""What a search has measured so far, and what it still waits for."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Generator, Iterable, Sequence

from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Trial

SHORTEST_MS = 1e-9
"""What a shorter latency counts as where logarithms are taken."""

_SHARE = 0.25  # of what is under way, that has to be known before a search goes on


class History:
    """Trials in the order in which they came, prior ones first.

    A config has one trial: what is learned of a known one (it was timed again) takes the place of what was. What was
    proposed by :meth:`measured` is under way until its trial comes, with the reply to that batch or to a later one.
    """

    def __init__(self, space: ConfigSpace, prior: Sequence[Trial] = ()) -> None:
        self._space = space
        self._places: dict[str, int] = {}
        self._ranked: list[tuple[float, int]] = []
        self.trials: list[Trial] = []
        self.under_way: dict[str, Config] = {}
        """The configs that were proposed and whose trials have not come, by key, in the order of proposal."""
        self.keys: set[str] = set()
        """The keys of all configs that were measured or are under way: what is not to be proposed."""
        self.best_ms = math.inf
        """The least latency so far; inf while nothing worked."""
        self.learn(prior)

    def __len__(self) -> int:
        return len(self.trials)

    def measured(self, batch: Batch) -> Generator[Batch, Sequence[Trial], Sequence[Trial]]:
        """Propose ``batch`` and learn the reply, which is returned.

        Where an empty batch brings nothing, what is under way will not come: it is given up.
        """
        self.under_way.update((self._space.key(c), c) for c in batch)
        self.keys.update(self.under_way)
        trials = yield batch
        self.learn(trials)
        if not batch and not trials:
            self.under_way.clear()
        return trials

    def flow(self, configs: Sequence[Config], stage: str, note: str = "") -> Generator[Batch, Sequence[Trial], None]:
        """Propose ``configs`` and learn the reply, which need only be a share of all that is then under way."""
        enough = math.ceil(_SHARE * (len(configs) + len(self.under_way)))
        yield from self.measured(Batch(configs, stage, note, enough=enough))

    def learn(self, trials: Iterable[Trial]) -> None:
        for trial in trials:
            key = self._space.key(trial.config)
            self.under_way.pop(key, None)
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
        """Those of ``configs`` that are neither measured nor under way, each once, in their order."""
        new: dict[str, Config] = {}
        for config in configs:
            key = self._space.key(config)
            if key not in self.keys:
                new.setdefault(key, config)
        return list(new.values())
