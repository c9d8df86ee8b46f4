"""The search space: named parameters and a static constraint."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from itertools import product
from typing import Any

from pytest_kerneltune.errors import SpaceError
from pytest_kerneltune.parameter import Parameter
from pytest_kerneltune.trial import Config

_SAMPLE_TRIES = 5000
_ENUMERABLE = 200_000


class ConfigSpace:
    """Every assignment of values to ``parameters`` that satisfies ``where``.

    ``where`` is pure and cheap: it is asked about every proposal before anything is compiled.
    Raises SpaceError where a parameter is none, a name is no identifier-like string, or no config satisfies ``where``.
    """

    def __init__(self, parameters: Mapping[str, Parameter], where: Callable[[Config], bool] | None = None) -> None:
        if not isinstance(parameters, Mapping):
            raise SpaceError(f"space= must map names to parameters such as integer(1, 4), not {parameters!r}")
        for name, parameter in parameters.items():
            if not isinstance(name, str) or not name:
                raise SpaceError(f"space= has the name {name!r}: a parameter's name is a non-empty string")
            if not isinstance(parameter, Parameter):
                raise SpaceError(f"space[{name!r}] is {parameter!r}: use choice, boolean, integer, power_of_two, ...")
        self.parameters = dict(parameters)
        self.where = where

    @property
    def names(self) -> list[str]:
        return list(self.parameters)

    @cached_property
    def size(self) -> int:
        """Number of configs before ``where``."""
        return math.prod(p.size for p in self.parameters.values())

    @cached_property
    def default(self) -> Config:
        """Every parameter's default; where the constraint refuses that, the nearest config it accepts."""
        start: Config = {name: p.default for name, p in self.parameters.items()}
        if self.is_allowed(start):
            return start
        frontier, seen = [start], {self.key(start)}
        while frontier and len(seen) < _ENUMERABLE:
            ring = {self.key(n): n for c in frontier for n in self._steps(c)}
            frontier = [n for key, n in ring.items() if key not in seen]
            seen.update(ring)
            for config in frontier:
                if self.is_allowed(config):
                    return config
        raise SpaceError("where= refuses the default config and every config near it")

    def is_allowed(self, config: Config) -> bool:
        """Whether ``where`` accepts a config of known values."""
        if self.where is None:
            return True
        try:
            return bool(self.where(config))
        except Exception as error:
            raise SpaceError(f"where= raised {type(error).__name__}: {error} for {dict(config)}") from error

    def canonical(self, config: Any) -> Config:
        """The equal config of this space, values and order of names normalised.

        Raises SpaceError naming the parameter where a name is missing or unknown, a value does not fit, or ``where``
        refuses the config.
        """
        if not isinstance(config, Mapping):
            raise SpaceError(f"a config must map parameter names to values, not {config!r}")
        if wrong := sorted(map(str, set(config) ^ set(self.parameters))):
            raise SpaceError(f"config {dict(config)} and its space differ in {', '.join(wrong)}")
        clean = {}
        for name, parameter in self.parameters.items():
            try:
                clean[name] = parameter.canonical(config[name])
            except SpaceError as error:
                raise SpaceError(f"{name}: {error}") from None
        if not self.is_allowed(clean):
            raise SpaceError(f"where= refuses {clean}")
        return clean

    def normalised(self, config: Config) -> Config:
        """``config``, of known values, with each parameter that does not matter beside the others at its default."""
        return config

    def contains(self, config: Any) -> bool:
        try:
            self.canonical(config)
        except SpaceError:
            return False
        return True

    def key(self, config: Config) -> str:
        """A string that is equal for equal configs, whatever made them."""
        return json.dumps([config[name] for name in self.parameters], separators=(",", ":"))

    def encode(self, config: Config) -> list[float]:
        """The config as numbers, one run of ``parameter.width`` a parameter, in the order of ``names``."""
        return [x for name, p in self.parameters.items() for x in p.encode(config[name])]

    def neighbours(self, config: Config, radius: int = 1) -> list[Config]:
        """Allowed configs that differ from ``config`` in one parameter by at most ``radius`` steps."""
        return [c for c in self._steps(config, radius) if self.is_allowed(c)]

    def enumerate(self) -> Iterator[Config]:
        """All allowed configs in lexicographic order; raises SpaceError where a parameter's values can't be listed."""
        columns = []
        for name, parameter in self.parameters.items():
            values = parameter.values()
            if values is None:
                raise SpaceError(f"{name} ({parameter.describe()}) has too many values to list")
            columns.append(values)
        for row in product(*columns):
            config = dict(zip(self.parameters, row, strict=True))
            if self.is_allowed(config):
                yield config

    def sample(self, rng: random.Random) -> Config | None:
        """One allowed config at random; None where none was found."""
        return next(iter(self.sample_new(rng, 1, frozenset())), None)

    def sample_new(self, rng: random.Random, count: int, seen: Collection[str]) -> list[Config]:
        """Up to ``count`` distinct allowed configs whose keys are not in ``seen``; fewer where no more were found.

        Uniform: by rejection, from a list where that finds too few and the space can be listed. Where so little is
        allowed that neither will do, configs around the default, reached by allowed steps.
        """
        found = {} if self._is_listable and self.size <= _SAMPLE_TRIES else self._rejection(rng, count, seen)
        if missing := count - len(found):
            others = self._listed if self._is_listable else self._around_default(rng, missing, seen)
            left = {key: c for c in others if (key := self.key(c)) not in seen and key not in found}
            found.update((key, left[key]) for key in rng.sample(list(left), min(missing, len(left))))
        return list(found.values())

    def _rejection(self, rng: random.Random, count: int, seen: Collection[str]) -> dict[str, Config]:
        found: dict[str, Config] = {}
        for _ in range(_SAMPLE_TRIES if self._is_drawable else 0):
            if len(found) >= count:
                break
            config = self._draw(rng)
            key = self.key(config)
            if key not in seen and key not in found and self.is_allowed(config):
                found[key] = config
        return found

    def _draw(self, rng: random.Random) -> Config:
        return {name: p.sample(rng) for name, p in self.parameters.items()}

    @cached_property
    def _is_drawable(self) -> bool:
        """Whether uniform draws meet the constraint at all; asked once, as every vain attempt costs as much."""
        rng = random.Random(0)
        return any(self.is_allowed(self._draw(rng)) for _ in range(_SAMPLE_TRIES))

    def _around_default(self, rng: random.Random, count: int, seen: Collection[str]) -> list[Config]:
        frontier, reached = [self.default], {self.key(self.default): self.default}
        while frontier and len(reached) < len(seen) + 10 * count:
            config = frontier.pop(rng.randrange(len(frontier)))
            new = {key: n for n in self.neighbours(config, 2) if (key := self.key(n)) not in reached}
            reached.update(new)
            frontier += new.values()
        return list(reached.values())

    @cached_property
    def _listed(self) -> list[Config]:
        return list(self.enumerate()) if self._is_listable else []

    @cached_property
    def _is_listable(self) -> bool:
        return self.size <= _ENUMERABLE and all(p.values() is not None for p in self.parameters.values())

    def _steps(self, config: Config, radius: int = 1) -> Iterator[Config]:
        for name, parameter in self.parameters.items():
            for value in parameter.neighbours(config[name], radius):
                yield {**config, name: value}

    def describe(self) -> dict[str, str]:
        """Parameter name to its values in words."""
        return {name: p.describe() for name, p in self.parameters.items()}
