"""Which configs a model is asked about, in spaces too large to ask about all."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from pytest_kerneltune.search.coordinates import Coordinates, Points
from pytest_kerneltune.search.gaussian import Floats
from pytest_kerneltune.search.history import History
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

_RENEWED = 0.1  # of the random candidates, each time
_LEAPS = 8  # edits of a good config each time that single steps cannot reach
_CLIMBERS = 6
_CLIMBS = 3
_TIE = 1e-9


class Candidates:
    """Random configs, all within ``radius`` steps of the best ``copies`` ones, and some further edits of those.

    Random ones are kept from one time to the next, except a tenth: drawing them is what costs most where the constraint
    allows few.
    """

    def __init__(
        self,
        space: ConfigSpace,
        rng: random.Random,
        coordinates: Coordinates,
        history: History,
        count: int,
        copies: int,
        radius: int,
    ) -> None:
        self._space, self._rng, self._coordinates, self._history = space, rng, coordinates, history
        self._count, self._copies, self._radius = count, copies, radius
        self._drawn: dict[str, Config] = {}
        self._near: dict[str, dict[str, Config]] = {}

    def best(self, score: Callable[[Points], Floats], taken: Collection[str]) -> Config | None:
        """The candidate whose ``score`` is highest, after climbing on it by single steps; None where none is left.

        Neither measured configs are candidates, nor those with keys in ``taken``.
        """
        found = {key: c for key, c in self._gathered().items() if key not in taken}
        if not found:
            return None
        configs, scores = list(found.values()), self._scored(score, found.values())
        for _ in range(_CLIMBS):
            tops = np.argsort(-scores, kind="stable")[:_CLIMBERS]
            steps = [step for i in tops for step in self._ring(configs[int(i)], 1).items()]
            new = {k: c for k, c in steps if k not in found and k not in taken and k not in self._history.keys}
            if not new:
                break
            found.update(new)
            gains = self._scored(score, new.values())
            is_higher = gains.max() > scores.max()
            configs, scores = [*configs, *new.values()], np.concatenate([scores, gains])
            if not is_higher:
                break
        return configs[int(scores.argmax())]

    def spread(self, count: int, known: Sequence[Config]) -> list[Config]:
        """At most ``count`` random configs, each the farthest of many from ``known`` and those before."""
        chosen: list[Config] = []
        pool = self._space.sample_new(self._rng, 12 * count, self._history.keys | {self._space.key(c) for c in known})
        if not pool:
            return chosen
        places = self._coordinates.points(pool)
        distances = np.full(len(pool), np.inf)
        for point in self._coordinates.points(known):
            distances = np.minimum(distances, np.abs(places - point).sum(axis=1))
        while len(chosen) < min(count, len(pool)):
            farthest = int(distances.argmax())
            chosen.append(pool[farthest])
            distances = np.minimum(distances, np.abs(places - places[farthest]).sum(axis=1))
            distances[farthest] = -np.inf
        return chosen

    def _gathered(self) -> dict[str, Config]:
        """The candidates by key, no measured one among them."""
        self._renew()
        bases = [trial.config for trial in self._history.best(self._copies)]
        near = [item for base in bases for item in self._ring(base, self._radius).items()]
        leaps = [(self._space.key(c), c) for base in bases for c in self._leaps(base)]
        found = {**self._drawn, **dict(near), **dict(leaps)}
        return {key: c for key, c in found.items() if key not in self._history.keys}

    def _renew(self) -> None:
        """Drop the oldest of the random candidates, and draw new ones in their stead."""
        self._drawn = {key: c for key, c in self._drawn.items() if key not in self._history.keys}
        stale = len(self._drawn) - round(self._count * (1 - _RENEWED))
        for key in list(self._drawn)[: max(0, stale)]:
            del self._drawn[key]
        new = self._space.sample_new(self._rng, self._count - len(self._drawn), self._history.keys | self._drawn.keys())
        self._drawn.update((self._space.key(c), c) for c in new)

    def _ring(self, config: Config, radius: int) -> dict[str, Config]:
        """The allowed configs within ``radius`` single steps of one parameter."""
        key = f"{radius}{self._space.key(config)}"
        if key not in self._near:
            self._near[key] = {self._space.key(c): c for c in self._space.neighbours(config, radius)}
        return self._near[key]

    def _leaps(self, base: Config) -> Iterable[Config]:
        """Edits of a few parameters at once, by a step or to any value."""
        for _ in range(_LEAPS):
            config = dict(base)
            for name in self._rng.sample(self._space.names, min(len(config), self._rng.randint(1, 3))):
                parameter = self._space.parameters[name]
                steps = parameter.neighbours(config[name], self._radius) if self._rng.random() < 0.5 else ()
                config[name] = self._rng.choice(steps) if steps else parameter.sample(self._rng)
            normalised = self._space.normalised(config)
            if self._space.is_allowed(normalised):
                yield normalised

    def _scored(self, score: Callable[[Points], Floats], configs: Collection[Config]) -> Floats:
        """Scores with ties broken at random."""
        ties = [_TIE * self._rng.random() for _ in configs]
        return np.asarray(score(self._coordinates.points(list(configs))) + np.array(ties))
