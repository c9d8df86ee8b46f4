"""Configs near a good one: edited at random, or as the trees of a forest advise."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from pytest_kerneltune.search.features import Encoder
from pytest_kerneltune.search.trees import Forest
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

_MOST_CHANGES = 3


class Editor:
    """Makes new configs out of one by steps of at most ``radius``; they may be ones that the constraint refuses."""

    def __init__(self, space: ConfigSpace, encoder: Encoder, rng: random.Random, radius: int) -> None:
        self._space, self._encoder, self._rng, self._radius = space, encoder, rng, radius

    def at_random(self, base: Config) -> Config:
        """``base`` with a few parameters a step away: what single steps cannot reach."""
        config = dict(base)
        count = min(len(config), self._rng.randint(2, _MOST_CHANGES))
        for name in self._rng.sample(self._space.names, count):
            config[name] = self._rng.choice(self._options(name, config)[1:] or [config[name]])
        return config

    def by_trees(self, forest: Forest, base: Config, count: int) -> list[Config]:
        """``count`` edits of ``base`` (at most one a tree), each the work of one tree of ``forest``.

        The tree names the parameters that it tests on its way with ``base``, and one random parameter is added. In
        that order each gets, of its value and those within reach, the one that the tree likes best by then.
        """
        trees = self._rng.sample(range(len(forest.roots)), min(count, len(forest.roots)))
        row = self._encoder.rows([base])[0]
        plans = [self._plan(forest.path(row, tree)) for tree in trees]
        drafts: list[Config] = [base for _ in trees]
        for step in range(max(map(len, plans), default=0)):
            unfinished = [i for i, plan in enumerate(plans) if step < len(plan)]
            choices = [self._variants(drafts[i], plans[i][step]) for i in unfinished]
            chosen = self._best(forest, [trees[i] for i in unfinished], choices)
            for i, config in zip(unfinished, chosen, strict=True):
                drafts[i] = config
        return drafts

    def _plan(self, columns: Iterable[int]) -> list[str]:
        tested = [name for column in columns for name in self._encoder.parameters(column)]
        return list(dict.fromkeys([*tested, self._rng.choice(self._space.names)]))

    def _options(self, name: str, config: Config) -> list[object]:
        return [config[name], *self._space.parameters[name].neighbours(config[name], self._radius)]

    def _variants(self, config: Config, name: str) -> list[Config]:
        return [{**config, name: value} for value in self._options(name, config)]

    def _best(self, forest: Forest, trees: Sequence[int], choices: Sequence[Sequence[Config]]) -> list[Config]:
        """Of each of ``choices`` the config that its tree likes best, ties broken at random."""
        askers = [tree for tree, configs in zip(trees, choices, strict=True) for _ in configs]
        rows = self._encoder.rows([config for configs in choices for config in configs])
        opinions = iter(forest.opinions(rows, askers).tolist())
        ranked = [[(next(opinions), self._rng.random(), c) for c in configs] for configs in choices]
        return [max(options, key=lambda option: option[:2])[2] for options in ranked]
