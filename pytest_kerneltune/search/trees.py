"""Random forests: their trees, and a classifying one as flat arrays.

scikit-learn grows the trees. Asking them goes through arrays taken out of them once a fit: a search asks about a few
hundred rows some ten times between two fits, where scikit-learn's own checks would cost more than the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pytest_kerneltune.search.features import Rows

Floats: TypeAlias = npt.NDArray[np.float64]
Nodes: TypeAlias = npt.NDArray[np.intp]

_SEEDS = 2**31 - 1
_COLUMNS_TRIED = 0.5  # of all, at each split: spaces have few columns, whose square root finds too few good splits


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


def grow_trees(rows: Rows, labels: npt.NDArray[np.bool_], weights: Floats, count: int, seed: int) -> list[Any]:
    """scikit-learn's trees of a random forest (Breiman, 2001) that tells the rows labelled True from the others.

    There must be rows of both kinds. The bags are drawn here, and nothing is validated: scikit-learn's forest spends
    more time on setting up its trees than they take to grow.
    """
    from sklearn.tree import DecisionTreeClassifier

    return _grown(DecisionTreeClassifier, rows, labels, weights, count, seed)


def grow_regression_trees(rows: Rows, targets: Floats, count: int, seed: int) -> list[Any]:
    """scikit-learn's trees of a random forest that tells the targets of rows; set up as in :func:`grow_trees`."""
    from sklearn.tree import DecisionTreeRegressor

    return _grown(DecisionTreeRegressor, rows, targets, np.ones(len(rows)), count, seed)


def _grown(kind: Any, rows: Rows, targets: npt.NDArray[Any], weights: Floats, count: int, seed: int) -> list[Any]:
    from sklearn import config_context

    draw = np.random.RandomState(seed)
    trees = []
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for _ in range(count):
            bag = np.bincount(draw.randint(0, len(rows), len(rows)), minlength=len(rows))
            tree = kind(max_features=_COLUMNS_TRIED, random_state=draw.randint(0, _SEEDS))
            trees.append(tree.fit(rows, targets, sample_weight=weights * bag, check_input=False).tree_)
    return trees


def flatten(trees: Sequence[Any]) -> Forest:
    """One forest of trees of scikit-learn's; there must be one at least."""
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
