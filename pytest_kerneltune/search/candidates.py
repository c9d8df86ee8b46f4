"""Which configs a model is asked about, in spaces too large to ask about all."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from pytest_kerneltune.search.coordinates import Coordinates, Floats, Points
from pytest_kerneltune.search.history import History
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

_RENEWED = 0.1  # of the random candidates, each time
_LEAPS = 20  # edits of a good config each time that single steps cannot reach
_CLIMBERS = 6
_CLIMBS = 3
_SHORTLIST = 200
_SPREAD_AMONG, _USUAL_OF = 12, 6
_REMEMBERED = 50_000  # places of configs, and surroundings of good ones
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
        self._places: dict[str, Points] = {}
        self._gathered: dict[str, Config] = {}
        self._chosen: set[str] = set()

    def gather(self) -> None:
        """Collect the candidates for the next :meth:`best`; measured configs are none."""
        self._chosen.clear()
        self._renew()
        bases = [trial.config for trial in self._history.best(self._copies)]
        near = [item for base in bases for item in self._ring(base, self._radius).items()]
        leaps = [(self._space.key(c), c) for base in bases for c in self._leaps(base)]
        found = {**self._drawn, **dict(near), **dict(leaps)}
        self._gathered = {key: c for key, c in found.items() if key not in self._history.keys}

    def best(self, score: Callable[[Points], Floats]) -> Config | None:
        """The candidate whose ``score`` is highest, after climbing on it by single steps; None where none is left.

        It is no candidate any more; nor is what scored far lower, until the next :meth:`gather`.
        """
        found = self._gathered
        if not found:
            return None
        scores = self._scored(score, found)
        for _ in range(_CLIMBS):
            tops = _highest(found, scores, _CLIMBERS)
            steps = {key: c for top in tops for key, c in self._ring(found[top], 1).items()}
            out = self._history.keys | self._chosen | found.keys()
            new = {key: c for key, c in steps.items() if key not in out}
            if not new:
                break
            gains = self._scored(score, new)
            is_higher = gains.max() > scores.max()
            found, scores = {**found, **new}, np.concatenate([scores, gains])
            if not is_higher:
                break
        return self._take(found, scores)

    def _take(self, found: Mapping[str, Config], scores: Floats) -> Config:
        """The highest of ``found``; the next ones stay."""
        first, *others = _highest(found, scores, 1 + _SHORTLIST)
        self._chosen.add(first)
        self._gathered = {key: found[key] for key in others}
        return found[first]

    def spread(self, count: int, known: Sequence[Config]) -> list[Config]:
        """At most ``count`` configs, each the farthest of many random ones from ``known`` and those before.

        The random ones are the most usual of still more: problems come in powers of two, which sizes that are none cut
        into uneven parts, and Triton's launch options have values that suit most kernels.
        """
        chosen: list[Config] = []
        out = self._history.keys | {self._space.key(c) for c in known}
        drawn = self._space.sample_new(self._rng, count * _SPREAD_AMONG * _USUAL_OF, out)
        if not drawn:
            return chosen
        pool = sorted(drawn, key=_oddity)[: max(count, len(drawn) // _USUAL_OF)]
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
        if len(self._near) > _REMEMBERED // 100:
            self._near.clear()
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

    def _scored(self, score: Callable[[Points], Floats], configs: Mapping[str, Config]) -> Floats:
        """Scores with ties broken at random."""
        if len(self._places) > _REMEMBERED:
            self._places.clear()
        if new := {key: c for key, c in configs.items() if key not in self._places}:
            self._places.update(zip(new, self._coordinates.points(list(new.values())), strict=True))
        ties = [_TIE * self._rng.random() for _ in configs]
        return np.asarray(score(np.stack([self._places[key] for key in configs])) + np.array(ties))


def _oddity(config: Config) -> float:
    """How far from usual the values are, in steps: see :meth:`Candidates.spread`."""
    return sum(_USUAL.get(name, _unevenness)(v) for name, v in config.items() if type(v) is int and v > 0)


def _unevenness(number: int) -> float:
    return float(number & (number - 1) != 0)


_USUAL: Mapping[str, Callable[[int], float]] = {
    "num_warps": lambda number: max(0.0, abs(math.log2(number) - 2.5) - 0.5),
    "num_stages": lambda number: max(0.0, abs(number - 3) - 1.0),
}
"""How far launch options of Triton are from what most tuned kernels have: 4 or 8 warps and 2 to 4 stages."""


def _highest(found: Mapping[str, Config], scores: Floats, count: int) -> list[str]:
    """The keys of the ``count`` highest scores, in that order."""
    keys = list(found)
    return [keys[i] for i in np.argsort(-scores, kind="stable")[:count]]
