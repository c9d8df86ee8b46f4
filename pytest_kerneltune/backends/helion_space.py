"""The search space of a Helion kernel, read from what Helion bound to its arguments.

Helion keeps a config as a flat list of slots, one for each dimension of its search ("fragment"). Each slot becomes a
parameter, named after the key of Helion's config that it belongs to: ``num_warps``, ``block_sizes[0]``. Slots with a
single value are left out.

Many flat lists make one and the same config (a persistent kernel's knobs mean nothing to a flat one, a block is cut to
its dimension), so every config is normalised by Helion itself: there and back again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from pytest_kerneltune.errors import SpaceError, UsageError
from pytest_kerneltune.parameter import Parameter, boolean, choice, integer, list_of, permutation, power_of_two
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

_LISTABLE = 4000  # configs that are few enough to have Helion normalise all of them
_REMEMBERED = 1 << 16
_MOST_ELEMENTS = 11  # exponent: a drawn config gives a thread at most 2048 elements of a tile, as Helion's own do
_LONGEST_DOMAIN = 4096


class HelionSpace(ConfigSpace):
    """The configs of a bound Helion kernel.

    The default is the first that the kernel's author gave it, else Helion's own.
    """

    def __init__(
        self,
        bound: Any,
        given: Mapping[str, Parameter] | None = None,
        where: Callable[[Config], bool] | None = None,
    ) -> None:
        """``given`` replaces the parameters of those names (a single value fixes one), ``where`` constrains configs.

        Raises UsageError where a name is none of the kernel's, SpaceError where a value is none of Helion's.
        """
        self._bound = bound
        fixed = getattr(bound.settings, "autotune_config_overrides", None)
        self._generation = bound.config_spec.create_config_generation(overrides=fixed or None)
        layout = bound.config_spec.flat_key_layout()
        self._slots, self._helion_keys = _slot_names(layout), {key for key, _, _ in layout}
        self._constants = self._flat(next(iter(bound.configs), None) or bound.config_spec.default_config())
        found = _parameters(self._generation.flat_spec, self._slots, self._constants)
        given = dict(given or {})
        if unknown := sorted(set(given) - set(found)):
            raise UsageError(f"space= names {', '.join(unknown)}, which this kernel has not: it has {', '.join(found)}")
        super().__init__({**found, **given}, where)
        for name, parameter in given.items():
            _checked_within(name, parameter, found[name])
        self._normal = lru_cache(_REMEMBERED)(self._normalised_by_helion)

    def narrowed(self, given: Mapping[str, Parameter], where: Callable[[Config], bool] | None) -> HelionSpace:
        """This space with other parameters for some names, or fewer configs."""
        return HelionSpace(self._bound, given, where)

    def helion_config(self, config: Config) -> Any:
        """``config`` as Helion's own, normalised; raises SpaceError for a name that is none of Helion's here (it may be
        of an older version), and what Helion does where there is no such config."""
        if unknown := sorted(set(config) - set(self._slots)):
            raise SpaceError(f"this version of Helion knows no {', '.join(unknown)} here")
        slots = list(self._constants)
        for index, name in enumerate(self._slots):
            slots[index] = _listed(config.get(name, slots[index]))
        return self._generation.unflatten(slots)

    @cached_property
    def seeds(self) -> tuple[Config, ...]:
        """Configs to start from: those of Helion's heuristics for this kernel, and those that its author gave it."""
        flats = [flat for flat, _ in self._generation.seed_flat_config_pairs()]
        flats += [self._flat(config) for config in self._bound.configs]
        configs = [{name: _tupled(flat[self._slots.index(name)]) for name in self.parameters} for flat in flats]
        return tuple(self.canonical(config) for config in configs if self.contains(config))

    def normalised(self, config: Config) -> Config:
        """The config that Helion makes of ``config``, which is of known values; itself where that is none."""
        found = self._normal(self._raw_key(config))
        return dict(config) if found is None else dict(found)

    def is_allowed(self, config: Config) -> bool:
        """Whether Helion has such a config, and ``where`` accepts it."""
        return self._normal(self._raw_key(config)) is not None and super().is_allowed(config)

    def key(self, config: Config) -> str:
        return self._raw_key(self.normalised(config))

    def canonical(self, config: Any) -> Config:
        """As for any space; Helion's own configs, and their keys beside this space's names, are understood too."""
        own = set(config) - set(self.parameters) if isinstance(config, Mapping) else set()
        if not own or not own <= self._helion_keys:
            return super().canonical(config)
        from helion import Config as HelionConfig

        flat = self._flat(HelionConfig(**{key: config[key] for key in own}))
        taken = {name: flat[i] for i, name in enumerate(self._slots) if name.partition("[")[0] in own}
        return super().canonical({n: taken.get(n, config.get(n, p.default)) for n, p in self.parameters.items()})

    def neighbours(self, config: Config, radius: int = 1) -> list[Config]:
        found = {self.key(n): n for n in super().neighbours(config, radius)}
        found.pop(self.key(config), None)
        return list(found.values())

    def enumerate(self) -> Iterator[Config]:
        seen: set[str] = set()
        for config in super().enumerate():
            if (key := self.key(config)) not in seen:
                seen.add(key)
                yield self.normalised(config)

    @cached_property
    def is_listable(self) -> bool:
        return self.size <= _LISTABLE and all(p.values() is not None for p in self.parameters.values())

    def _draw(self, rng: random.Random) -> Config:
        """A config at random whose tiles are no larger than the threads can hold, as Helion draws them."""
        drawn = {name: p.sample(rng) for name, p in self.parameters.items()}
        slots = [_listed(drawn.get(name, slot)) for name, slot in zip(self._slots, self._constants, strict=True)]
        self._generation.shrink_config(slots, 1 << rng.randint(0, _MOST_ELEMENTS))
        return self.normalised(self._accepted(slots, drawn))

    def _raw_key(self, config: Config) -> str:
        return json.dumps([config[name] for name in self.parameters], separators=(",", ":"))

    def _normalised_by_helion(self, key: str) -> Config | None:
        """None where Helion has no such config."""
        config = {name: _tupled(value) for name, value in zip(self.parameters, json.loads(key), strict=True)}
        try:
            return self._accepted(self._flat(self.helion_config(config)), config)
        except Exception:  # Helion's InvalidConfig, or whatever its checks raise
            return None

    def _accepted(self, slots: Sequence[Any], config: Config) -> Config:
        """The values of ``slots``; of ``config`` where a narrowed parameter has not the slot's."""
        values = dict(zip(self._slots, slots, strict=True))
        return {name: _fitting(p, values[name], config[name]) for name, p in self.parameters.items()}

    def _flat(self, config: Any) -> list[Any]:
        flat = self._generation.flatten(config)
        return list(self._generation.canonicalize_flat(flat)[0])


def _slot_names(layout: Sequence[tuple[str, int, bool]]) -> list[str]:
    names = []
    for key, count, is_sequence in layout:
        names += [f"{key}[{i}]" for i in range(count)] if is_sequence else [key]
    return names


def _parameters(fragments: Sequence[Any], names: Sequence[str], defaults: Sequence[Any]) -> dict[str, Parameter]:
    found = {}
    for fragment, name, default in zip(fragments, names, defaults, strict=True):
        parameter = _parameter(fragment, name, _tupled(default))
        if parameter is not None and parameter.size > 1:
            found[name] = parameter
    return found


def _parameter(fragment: Any, name: str, default: Any) -> Parameter | None:
    """The parameter of a fragment's values with this default; None where it has no values to choose from."""
    from helion.autotuner import config_fragment as kinds

    if isinstance(fragment, kinds.PermutationFragment):
        return permutation(fragment.length, default=default) if fragment.length else None
    if isinstance(fragment, kinds.ListOf):
        inner = _parameter(fragment.inner, name, fragment.inner.default()) if fragment.length else None
        return None if inner is None else list_of(inner, fragment.length, default=default)
    if isinstance(fragment, kinds.BooleanFragment):
        return boolean(default=default)
    if isinstance(fragment, kinds.BaseIntegerFragment):  # the author's config may lie beyond what Helion would search
        low, high = min(fragment.low, default), max(fragment.high, default)
    if isinstance(fragment, kinds.IntegerFragment):
        return integer(low, high, default=default)
    if isinstance(fragment, kinds.PowerOfTwoFragment) and all(n & (n - 1) == 0 < n for n in (low, high, default)):
        return power_of_two(low, high, default=default)
    return _choice(fragment, name, default)


def _choice(fragment: Any, name: str, default: Any) -> Parameter:
    values = getattr(fragment, "search_choices", None) or getattr(fragment, "choices", None)
    if values is None and hasattr(fragment, "search_values"):
        values = fragment.search_values(_LONGEST_DOMAIN)
    if values is None:
        raise UsageError(
            f"HelionKernel: {name} is of the kind {type(fragment).__name__}, which is not known here: fix it in the "
            "kernel's config, or use another version of helion"
        )
    tupled = [_tupled(value) for value in values]
    known = [json.dumps(value) for value in tupled]
    return choice(*tupled, *(() if json.dumps(default) in known else (default,)), default=default)


def _checked_within(name: str, parameter: Parameter, found: Parameter) -> None:
    for value in [parameter.default, *(parameter.values() or ())]:
        try:
            found.canonical(value)
        except SpaceError as error:
            raise SpaceError(f"space[{name!r}]: Helion does not allow it: {error}") from None


def _fitting(parameter: Parameter, value: Any, otherwise: Any) -> Any:
    try:
        return parameter.canonical(value)
    except SpaceError:
        return otherwise


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, tuple | list) else value
