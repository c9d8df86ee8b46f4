"""The search space: named parameters, the conditions under which they matter, and a static constraint.

What a parameter is set to where it does not matter makes no difference, so there it has its default (``condition.py``).
Every config that a space hands out is normalised like that, and ``where`` is asked about such configs only.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from types import MappingProxyType
from typing import Any

from pytest_kerneltune.condition import Conditions
from pytest_kerneltune.errors import SpaceError
from pytest_kerneltune.parameter import Parameter
from pytest_kerneltune.trial import Config

_compact = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder for each config

_SAMPLE_TRIES = 5000  # draws for several configs, of which others can be found in other ways
_LAST_TRIES = 20_000  # draws for a single one: after as many in vain, there is none
_ENUMERABLE = 200_000
_CONTROLLED = 5000  # assignments to the parameters that conditions depend on, gone through to count configs
_NEAR, _FAR = 10_000, 30_000  # configs around the default, before other ways to an allowed one and after all of them


class ConfigSpace:
    """Every normalised assignment of values to ``parameters`` that satisfies ``where``.

    ``where`` is pure and cheap: it is asked about every proposal before anything is compiled.
    Raises SpaceError where a parameter is none, a name is no identifier-like string, a condition makes no sense, or no
    config satisfies ``where``.
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
        self.conditions = Conditions(self.parameters)

    @property
    def names(self) -> list[str]:
        return list(self.parameters)

    @cached_property
    def size(self) -> int:
        """Number of configs before ``where``; an upper bound where parameters have conditions."""
        return math.prod(p.size for p in self.parameters.values())

    @cached_property
    def default(self) -> Config:
        """Every parameter's default; where the constraint refuses that, the nearest config it accepts."""
        start: Config = {name: p.default for name, p in self.parameters.items()}
        if self.is_allowed(start):
            return start
        found = self._nearest(start, _NEAR) or self._any_allowed() or self._nearest(start, _FAR)
        if found is None:
            raise SpaceError("where= refuses the default config and every config near it")
        return found

    def _nearest(self, start: Config, limit: int) -> Config | None:
        """The allowed config that the fewest single steps lead to, among the ``limit`` configs next to ``start``."""
        ring, seen = [start], {self.key(start)}
        while ring:
            inner, ring = ring, []
            for config in (n for c in inner for n in self._steps(c)):
                if (key := self.key(config)) in seen:
                    continue
                if self.is_allowed(config):
                    return config
                if len(seen) == limit:
                    return None
                seen.add(key)
                ring.append(config)
        return None

    def _any_allowed(self) -> Config | None:
        """An allowed config with each parameter at its default where that is allowed; None where none is found."""
        drawn = self._rejection(random.Random(0), 1, frozenset(), _LAST_TRIES) or self._listed
        if not drawn:
            return None
        config = next(iter(drawn.values()))
        for name, parameter in self.parameters.items():
            reset = self.normalised({**config, name: parameter.default})
            config = reset if self.is_allowed(reset) else config
        return config

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
        known = {}
        for name, parameter in self.parameters.items():
            try:
                known[name] = parameter.canonical(config[name])
            except SpaceError as error:
                raise SpaceError(f"{name}: {error}") from None
        clean = self.normalised(known)
        if not self.is_allowed(clean):
            raise SpaceError(f"where= refuses {dict(clean)}")
        return clean

    def normalised(self, config: Config) -> Config:
        """``config``, of known values, with each parameter that does not matter beside the others at its default."""
        return self.conditions.normalised(config)

    def contains(self, config: Any) -> bool:
        try:
            self.canonical(config)
        except SpaceError:
            return False
        return True

    def key(self, config: Config) -> str:
        """A string that is equal for equal configs, whatever made them and whether or not they are normalised."""
        clean = self.conditions.normalised(config)
        return _compact([clean[name] for name in self.parameters])

    def encode(self, config: Config) -> list[float]:
        """The config as numbers, one run of ``parameter.width`` a parameter, in the order of ``names``."""
        return [x for name, p in self.parameters.items() for x in p.encode(config[name])]

    def neighbours(self, config: Config, radius: int = 1) -> list[Config]:
        """Allowed configs that differ from ``config`` by at most ``radius`` steps of one parameter that matters."""
        return [c for c in self._steps(self.normalised(config), radius) if self.is_allowed(c)]

    def enumerate(self) -> Iterator[Config]:
        """All allowed configs, each once; raises SpaceError where a parameter's values can't be listed.

        In lexicographic order, the parameters that conditions depend on first.
        """
        return (config for config in self._rows() if self.is_allowed(config))

    def _rows(self) -> Iterator[Config]:
        columns = {name: self._column(name) for name in self.parameters}
        for chosen in self._controlled():
            fixed = {name: (value,) for name, value in chosen.items()}
            idle = {name: (self.parameters[name].default,) for name in columns if self.conditions.is_idle(name, chosen)}
            for row in product(*{**columns, **idle, **fixed}.values()):
                yield dict(zip(self.parameters, row, strict=True))

    def _column(self, name: str) -> Sequence[Any]:
        parameter = self.parameters[name]
        values = parameter.values()
        if values is None:
            raise SpaceError(f"{name} ({parameter.describe()}) has too many values to list")
        return values

    def _controlled(self, chosen: Config = MappingProxyType({})) -> Iterator[Config]:
        """The normalised assignments to the parameters that conditions depend on; an empty one where none does."""
        names = self.conditions.controlling
        if len(chosen) == len(names):
            yield chosen
            return
        name = names[len(chosen)]
        is_idle = self.conditions.is_idle(name, chosen)
        for value in (self.parameters[name].default,) if is_idle else self._column(name):
            yield from self._controlled({**chosen, name: value})

    def sample(self, rng: random.Random) -> Config | None:
        """One allowed config at random; None where none was found."""
        return next(iter(self.sample_new(rng, 1, frozenset())), None)

    def sample_new(self, rng: random.Random, count: int, seen: Collection[str]) -> list[Config]:
        """Up to ``count`` distinct allowed configs whose keys are not in ``seen``; fewer where no more were found.

        Uniform before normalising: by rejection; uniform after, from a list, where the space can be listed and is small
        or rejection finds too few. Where so little is allowed that neither will do, configs around the default, reached
        by allowed steps; where that gives none, one from rejection that takes longer.
        """
        is_small = self.is_listable and self._count <= _SAMPLE_TRIES
        found = {} if is_small else self._rejection(rng, count, seen, _SAMPLE_TRIES)
        if (missing := count - len(found)) > 0:
            others = self._listed if self.is_listable else self._around_default(rng, missing, seen)
            left = [key for key in others if key not in seen and key not in found]
            found.update((key, others[key]) for key in rng.sample(left, min(missing, len(left))))
        if not found and not self.is_listable:
            found = self._rejection(rng, min(count, 1), seen, _LAST_TRIES)
        return list(found.values())

    def _rejection(self, rng: random.Random, count: int, seen: Collection[str], tries: int) -> dict[str, Config]:
        found: dict[str, Config] = {}
        for _ in range(tries if self._is_drawable else 0):
            if len(found) >= count:
                break
            config = self._draw(rng)
            if self.is_allowed(config) and (key := self.key(config)) not in seen:
                found.setdefault(key, config)
        return found

    def _draw(self, rng: random.Random) -> Config:
        return self.normalised({name: p.sample(rng) for name, p in self.parameters.items()})

    @cached_property
    def _is_drawable(self) -> bool:
        """Whether uniform draws meet the constraint at all; asked once, as every vain attempt costs as much."""
        rng = random.Random(0)
        return any(self.is_allowed(self._draw(rng)) for _ in range(_LAST_TRIES))

    def _around_default(self, rng: random.Random, count: int, seen: Collection[str]) -> dict[str, Config]:
        frontier, reached = [self.default], {self.key(self.default): self.default}
        while frontier and len(reached) < len(seen) + 10 * count:
            config = frontier.pop(rng.randrange(len(frontier)))
            new = {key: n for n in self.neighbours(config, 2) if (key := self.key(n)) not in reached}
            reached.update(new)
            frontier += new.values()
        return reached

    @cached_property
    def _listed(self) -> dict[str, Config]:
        return {self.key(config): config for config in self.enumerate()} if self.is_listable else {}

    @cached_property
    def is_listable(self) -> bool:
        """Whether the configs before ``where`` are few enough to go through all of them."""
        return all(p.values() is not None for p in self.parameters.values()) and self._count <= _ENUMERABLE

    @cached_property
    def _count(self) -> int:
        """Number of normalised configs before ``where``, of a space whose values can be listed; ``size`` if many."""
        count = 0
        for number, chosen in enumerate(self._controlled(), 1):
            matter = [n for n in self.parameters if n not in chosen and not self.conditions.is_idle(n, chosen)]
            count += math.prod(self.parameters[name].size for name in matter)
            if count > _ENUMERABLE or number > _CONTROLLED:
                return self.size
        return count

    def _steps(self, config: Config, radius: int = 1) -> Iterator[Config]:
        """The normalised configs that differ from ``config``, which is normalised, in one parameter that matters."""
        for name, parameter in self.parameters.items():
            is_idle = self.conditions.is_idle(name, config)
            for value in () if is_idle else parameter.neighbours(config[name], radius):
                yield self.normalised({**config, name: value})

    def describe(self) -> dict[str, str]:
        """Parameter name to its values in words, and to when it matters where it has a condition."""
        return {name: self._described(name, p) for name, p in self.parameters.items()}

    def _described(self, name: str, parameter: Parameter) -> str:
        when = self.conditions.words(name)
        return parameter.describe() + (f"; only matters where {when}" if when else "")
