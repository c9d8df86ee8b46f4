"""Configs as rows of numbers, and a random forest over them as flat arrays.

scikit-learn grows the trees. Asking them goes through arrays taken out of them once a fit: a search asks about a few
hundred rows some ten times between two fits, where scikit-learn's own checks would cost more than the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

Floats: TypeAlias = npt.NDArray[np.float64]
Rows: TypeAlias = npt.NDArray[np.float32]
"""One config a row; the type scikit-learn grows trees on, so that no threshold is rounded past a value."""
Nodes: TypeAlias = npt.NDArray[np.intp]


class Encoder:
    """Configs of a space as rows; ``owners`` holds the parameter that each column belongs to."""

    def __init__(self, space: ConfigSpace) -> None:
        self._parameters = space.parameters
        self.owners = [name for name, p in space.parameters.items() for _ in range(p.width)]
        self._known: dict[str, dict[str, list[float]]] = {name: {} for name in space.parameters}

    def rows(self, configs: Sequence[Config]) -> Rows:
        flat = [x for config in configs for name, value in config.items() for x in self._encode(name, value)]
        return np.array(flat, dtype=np.float32).reshape(len(configs), len(self.owners))

    def _encode(self, name: str, value: Any) -> list[float]:
        token = repr(value)
        known = self._known[name]
        if token not in known:
            known[token] = self._parameters[name].encode(value)
        return known[token]


@dataclass(frozen=True)
class Forest:
    """Trees as one run of nodes: where ``row[column] <= threshold`` go to ``left``, else to ``right``.

    A leaf is its own child. ``good`` is a node's share of the weight of good configs, ``roots`` the trees' first nodes.
    """

    column: Nodes
    threshold: Floats
    left: Nodes
    right: Nodes
    good: Floats
    roots: Nodes
    depth: int

    def leaves(self, rows: Rows) -> Nodes:
        """The leaf of every row in every tree, of shape (rows, trees)."""
        nodes = np.broadcast_to(self.roots, (len(rows), len(self.roots)))
        return self._descend(rows, nodes)

    def opinions(self, rows: Rows, trees: Sequence[int]) -> Floats:
        """What one tree each says of the rows: how probably good."""
        return np.asarray(self.good[self._descend(rows, self.roots[list(trees)][:, None])[:, 0]])

    def path(self, row: Rows, tree: int) -> list[int]:
        """The columns that ``tree`` tests on its way with ``row``, in order."""
        node, columns = int(self.roots[tree]), []
        while self.left[node] != node:
            column = int(self.column[node])
            columns.append(column)
            node = int(self.left[node] if row[column] <= self.threshold[node] else self.right[node])
        return columns

    def _descend(self, rows: Rows, nodes: Nodes) -> Nodes:
        each = np.arange(len(rows))[:, None]
        for _ in range(self.depth):
            low = rows[each, self.column[nodes]] <= self.threshold[nodes]
            nodes = np.where(low, self.left[nodes], self.right[nodes])
        return nodes


def grow_forest(rows: Rows, labels: npt.NDArray[np.bool_], weights: Floats, trees: int, seed: int) -> Forest:
    """A random forest that tells the rows labelled True from the others; there must be rows of both kinds."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(trees, criterion="log_loss", n_jobs=1, random_state=seed)
    model.fit(rows, labels, sample_weight=weights)
    return _flattened([estimator.tree_ for estimator in model.estimators_])


def _flattened(trees: Sequence[Any]) -> Forest:
    ends = np.cumsum([tree.node_count for tree in trees])
    roots = ends - [tree.node_count for tree in trees]
    leaf = np.concatenate([tree.children_left < 0 for tree in trees])
    own = np.arange(ends[-1])
    left = np.concatenate([tree.children_left + root for tree, root in zip(trees, roots, strict=True)])
    right = np.concatenate([tree.children_right + root for tree, root in zip(trees, roots, strict=True)])
    values = np.concatenate([tree.value[:, 0, :] for tree in trees])
    return Forest(
        column=np.where(leaf, 0, np.concatenate([tree.feature for tree in trees])),
        threshold=np.concatenate([tree.threshold for tree in trees]),
        left=np.where(leaf, own, left),
        right=np.where(leaf, own, right),
        good=values[:, 1] / values.sum(axis=1),
        roots=roots,
        depth=max(tree.max_depth for tree in trees),
    )
