"""Ensembles of decision trees of ai.onnx.ml.

Canonical form, the same for all three operators; a tree is nothing but `x <= threshold` nodes:

    ai.onnx.ml.TreeEnsemble(X[N, F]) -> Y[N, targets]
    ai.onnx.ml.TreeEnsembleClassifier(X[N, F]) -> labels[N], scores[N, C]

`features` int64[inner], `thresholds`[inner], `children` int64[nodes, 2] (if not, if so),
`missing_goes_on` bool[inner] (NaN counts as "so"), `roots` int64[trees], `depth` (steps from
a root to its deepest leaf), `weights`[leaves, targets], `aggregate`, `base_values`[targets],
`post_transform`. Node n is the leaf n - inner from `inner` on, and its own child.
Weights that a leaf does not have are 0, or the identity of MIN and MAX.

A classifier has, moreover, the attributes of `learned_scores` and `threshold`: for two classes
of which the leaves know one, above which score that is chosen; NaN for the largest score.

Other comparisons become this one exactly, with t- the float before t: x < t is x <= t-;
x == t is x <= t and not x <= t-; the rest swap their children; x in a set is a chain of x == t.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from aegis_pipe.execution.operators import learned_scores, reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_CLASSIFIER = "ai.onnx.ml.TreeEnsembleClassifier"
_ENSEMBLE = "ai.onnx.ml.TreeEnsemble"
_MODES = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ", "MEMBER")
_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
_IDENTITIES = {"MIN": math.inf, "MAX": -math.inf}


@dataclass(slots=True, eq=False)
class _Forest:
    """Trees being rewritten; a child is an inner node's index, or ~leaf."""

    features: list[int] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    children: list[tuple[int, int]] = field(default_factory=list)
    missing: list[bool] = field(default_factory=list)

    def add(self, feature: int, threshold: float, missing: bool) -> int:
        """Add `x <= threshold`, whose children are set later."""
        self.features.append(feature)
        self.thresholds.append(threshold)
        self.missing.append(missing)
        self.children.append((0, 0))
        return len(self.features) - 1


@dataclass(frozen=True, slots=True)
class _Branch:
    """One node as the model has it; children as in `_Forest`, in terms of the model's nodes."""

    feature: int
    mode: str
    threshold: float
    when_true: int
    when_false: int
    missing: bool
    members: tuple[float, ...] = ()


def _before(threshold: float, dtype: np.dtype) -> float:
    return float(np.nextafter(dtype.type(threshold), dtype.type(-np.inf)))


def _rewrite(branches: Sequence[_Branch], dtype: np.dtype) -> tuple[_Forest, list[int]]:
    """Return the forest and where each of the model's nodes starts in it."""
    forest = _Forest()
    placed = [_add(forest, branch, dtype) for branch in branches]
    starts = [added[0] for added in placed]
    for branch, added in zip(branches, placed, strict=True):
        _connect(forest, branch, added, starts)
    return forest, starts


def _add(forest: _Forest, branch: _Branch, dtype: np.dtype) -> list[int]:
    """Add the nodes that a branch becomes."""
    feature, value = branch.feature, branch.threshold
    match branch.mode:
        case "LEQ":
            return [forest.add(feature, value, branch.missing)]
        case "LT":
            return [forest.add(feature, _before(value, dtype), branch.missing)]
        # Swapped: a NaN that has nowhere to go fails the comparison, and so passes its opposite.
        case "GT":
            return [forest.add(feature, value, not branch.missing)]
        case "GTE":
            return [forest.add(feature, _before(value, dtype), not branch.missing)]
        case "EQ" | "NEQ":
            return _add_equal(forest, feature, [value], dtype)
        case _:
            return _add_equal(forest, feature, branch.members, dtype)


def _add_equal(
    forest: _Forest, feature: int, values: Iterable[float], dtype: np.dtype
) -> list[int]:
    added = []
    for value in values:
        added.append(forest.add(feature, value, False))
        added.append(forest.add(feature, _before(value, dtype), False))
    return added


def _connect(forest: _Forest, branch: _Branch, added: list[int], starts: list[int]) -> None:
    def target(child: int) -> int:
        return child if child < 0 else starts[child]

    so, otherwise = target(branch.when_true), target(branch.when_false)
    if branch.mode in ("LEQ", "LT"):
        forest.children[added[0]] = (otherwise, so)
        return
    if branch.mode in ("GT", "GTE"):
        forest.children[added[0]] = (so, otherwise)
        return
    if branch.mode == "NEQ":
        so, otherwise = otherwise, so
    for position in range(0, len(added), 2):
        upper, lower = added[position : position + 2]
        beyond = added[position + 2] if position + 2 < len(added) else otherwise
        forest.children[upper] = (beyond, lower)
        forest.children[lower] = (so, beyond)
    # NaN fails every comparison: right for x != t, and where NaN is to count as equal the first
    # node sends it on to the second, which it then fails on the side of equality.
    forest.missing[added[0]] = branch.missing and branch.mode != "NEQ"


def _arrays(
    forest: _Forest, roots: Sequence[int], leaf_count: int, dtype: np.dtype
) -> dict[str, Attribute]:
    inner = len(forest.features)
    children = np.array(forest.children, np.int64).reshape(inner, 2)
    children = np.where(children < 0, inner + ~children, children)
    leaves = np.arange(inner, inner + leaf_count)[:, None].repeat(2, axis=1)
    starts = np.array([inner + ~root if root < 0 else root for root in roots], np.int64)
    every = np.concatenate([children, leaves])
    return {
        "features": np.array(forest.features, np.int64),
        "thresholds": np.array(forest.thresholds, dtype),
        "missing_goes_on": np.array(forest.missing, np.bool_),
        "children": every,
        "roots": starts,
        "depth": _depth(every, starts, inner),
    }


def _depth(children: np.ndarray, roots: np.ndarray, inner: int) -> int:
    """Count the steps until all paths have ended; a graph with a cycle has no end."""
    front, depth = np.unique(roots), 0
    while (front < inner).any():
        front = np.unique(children[front[front < inner]])
        depth += 1
        if depth > inner:
            return -1
    return depth


def _compute_dtype(context: OperatorContext, *values: np.ndarray) -> np.dtype:
    wide = reading.operand(context, 0, "X").dtype == np.float64 or any(
        value.dtype == np.float64 for value in values
    )
    return np.dtype(np.float64 if wide else np.float32)


def _check_trees(context: OperatorContext, trees: dict[str, Attribute]) -> None:
    _, width = learned_scores.rows_and_width(context)
    features = trees["features"]
    assert isinstance(features, np.ndarray)
    fits = features.size == 0 or (features.min() >= 0 and features.max() < width)
    reading.require(fits, context, f"a tree asks for a feature beyond the {width} of X")
    reading.require(trees["depth"] != -1, context, "a tree leads back to itself")


def _old_trees(
    context: OperatorContext, weights: np.ndarray, prefix: str
) -> tuple[dict[str, Attribute], list[tuple[int, int, float]]]:
    """Read the lists of opsets 1 and 3; returns the trees and (leaf, target, weight)s."""
    values = learned_scores.float_array(context, "nodes_values")
    dtype = _compute_dtype(context, values, weights)
    names = ("treeids", "nodeids", "featureids", "truenodeids", "falsenodeids")
    tree, node, feature, when_true, when_false = (
        reading.integers(context, f"nodes_{name}", ()) for name in names
    )
    modes = [mode.removeprefix("BRANCH_") for mode in reading.texts(context, "nodes_modes", ())]
    count = len(tree)
    missing = reading.integers(context, "nodes_missing_value_tracks_true", (0,) * count)
    fits = {len(each) for each in (node, feature, when_true, when_false, modes, missing)} == {count}
    reading.require(fits and len(values) == count > 0, context, "lists of nodes differ in length")
    known = all(mode == "LEAF" or mode in _MODES[:6] for mode in modes)
    reading.require(known, context, f"node modes {sorted(set(modes))} are not all known")
    keys = list(zip(tree, node, strict=True))
    inner = [i for i in range(count) if modes[i] != "LEAF"]
    leaves = [i for i in range(count) if modes[i] == "LEAF"]
    place = {keys[i]: position for position, i in enumerate(inner)}
    place |= {keys[i]: ~position for position, i in enumerate(leaves)}

    def find(tree_id: int, node_id: int) -> int:
        reading.require((tree_id, node_id) in place, context, f"there is no node {node_id}")
        return place[tree_id, node_id]

    branches = [
        _Branch(
            feature[i],
            modes[i],
            float(values[i]),
            find(tree[i], when_true[i]),
            find(tree[i], when_false[i]),
            bool(missing[i]),
        )
        for i in inner
    ]
    forest, starts = _rewrite(branches, dtype)
    first = dict(reversed([(key[0], place[key]) for key in keys]))
    roots = [root if root < 0 else starts[root] for _, root in sorted(first.items())]
    trees = _arrays(forest, roots, len(leaves), dtype)
    leaf_keys = zip(
        reading.integers(context, f"{prefix}_treeids", ()),
        reading.integers(context, f"{prefix}_nodeids", ()),
        strict=True,
    )
    places = [find(*key) for key in leaf_keys]
    targets = reading.integers(context, f"{prefix}_ids", ())
    reading.require(max(places, default=0) < 0, context, "a node that is no leaf has a weight")
    reading.require(
        len(places) == len(targets) == len(weights), context, "lists of weights differ in length"
    )
    entries = [
        (~leaf, target, float(weight))
        for leaf, target, weight in zip(places, targets, weights, strict=True)
    ]
    return trees, entries


def _new_trees(
    context: OperatorContext,
) -> tuple[dict[str, Attribute], list[tuple[int, int, float]]]:
    """Read the lists of opset 5, in which nodes and leaves are numbered through."""
    splits, leaf_weights = (_tensor(context, name) for name in ("nodes_splits", "leaf_weights"))
    dtype = _compute_dtype(context)
    names = ("nodes_featureids", "nodes_truenodeids", "nodes_falsenodeids", "nodes_trueleafs")
    feature, when_true, when_false, true_leaf = (
        reading.integers(context, name, ()) for name in names
    )
    false_leaf = reading.integers(context, "nodes_falseleafs", ())
    modes = _tensor(context, "nodes_modes")
    count = len(feature)
    missing = reading.integers(context, "nodes_missing_value_tracks_true", (0,) * count)
    lists = (when_true, when_false, true_leaf, false_leaf, modes, missing, splits)
    reading.require(
        {len(each) for each in lists} == {count}, context, "lists of nodes differ in length"
    )
    targets = reading.integers(context, "leaf_targetids", ())
    in_range = all(
        0 <= child < (len(targets) if is_leaf else count)
        for child, is_leaf in zip((*when_true, *when_false), (*true_leaf, *false_leaf), strict=True)
    )
    reading.require(
        in_range and all(mode < len(_MODES) for mode in modes), context, "a node is out of range"
    )
    members = _member_sets(context, modes)
    branches = [
        _Branch(
            feature[i],
            _MODES[int(modes[i])],
            float(splits[i]),
            ~when_true[i] if true_leaf[i] else when_true[i],
            ~when_false[i] if false_leaf[i] else when_false[i],
            bool(missing[i]),
            members[i],
        )
        for i in range(count)
    ]
    forest, starts = _rewrite(branches, dtype)
    roots = [starts[root] for root in reading.integers(context, "tree_roots", ())]
    trees = _arrays(forest, roots, len(targets), dtype)
    weights = leaf_weights.astype(float).tolist()
    return trees, list(zip(range(len(targets)), targets, weights, strict=True))


def _tensor(context: OperatorContext, name: str) -> np.ndarray:
    value = context.node.attributes.get(name)
    if not isinstance(value, np.ndarray):
        raise reading.invalid(context, f"attribute `{name}` has to be a tensor")
    return value.reshape(-1)


def _member_sets(context: OperatorContext, modes: np.ndarray) -> list[tuple[float, ...]]:
    """Return each node's set; they stand one after the other, NaN after each."""
    sets: list[tuple[float, ...]] = []
    if "membership_values" in context.node.attributes:
        current: list[float] = []
        for value in _tensor(context, "membership_values").astype(float).tolist():
            if math.isnan(value):
                sets.append(tuple(current))
                current = []
            else:
                current.append(value)
    member = _MODES.index("MEMBER")
    asking = int((modes == member).sum())
    fits = asking <= len(sets) and all(sets[:asking])
    reading.require(fits, context, "membership_values does not hold a set for each node that asks")
    following = iter(sets)
    return [next(following) if mode == member else () for mode in modes]


def _dense_weights(
    context: OperatorContext,
    trees: dict[str, Attribute],
    entries: Sequence[tuple[int, int, float]],
    target_count: int,
    aggregate: str,
) -> np.ndarray:
    thresholds, children = trees["thresholds"], trees["children"]
    assert isinstance(thresholds, np.ndarray)
    assert isinstance(children, np.ndarray)
    leaf_count = len(children) - len(thresholds)
    in_range = all(0 <= target < target_count for _, target, _ in entries)
    reading.require(in_range, context, f"a leaf has a target beyond the {target_count} there are")
    shape = (leaf_count, target_count)
    dense = np.full(shape, _IDENTITIES.get(aggregate, 0.0), thresholds.dtype)
    for leaf, target, weight in entries:
        # Opset 1 allows a leaf to list a target twice.
        dense[leaf, target] = weight + (dense[leaf, target] if aggregate not in _IDENTITIES else 0)
    return dense


def _aggregate(context: OperatorContext) -> str:
    if context.node.operator == "TreeEnsemble":
        index = reading.integer(context, "aggregate_function", 1)
        reading.require(0 <= index < 4, context, f"aggregate_function {index} is unknown")
        return _AGGREGATES[index]
    name = reading.text(context, "aggregate_function", "SUM")
    reading.require(name in _AGGREGATES, context, f"aggregate_function `{name}` is unknown")
    return name


def _target_count(context: OperatorContext) -> int:
    return reading.integer(context, "n_targets")


def _infer_regressor(context: OperatorContext) -> list[TensorSpec]:
    rows, _ = learned_scores.rows_and_width(context)
    is_new = context.node.operator == "TreeEnsemble"
    dtype = reading.operand(context, 0, "X").dtype if is_new else learned_scores.FLOAT32
    return [TensorSpec(dtype, (rows, _target_count(context)))]


def _base_values(context: OperatorContext, count: int, dtype: np.dtype) -> np.ndarray:
    values = learned_scores.float_array(context, "base_values").astype(dtype)
    reading.require(values.size in (0, count), context, f"{values.size} base values do not fit")
    return values if values.size else np.zeros(1, dtype)


def _lower_regressor(context: OperatorContext) -> Lowered:
    count, aggregate = _target_count(context), _aggregate(context)
    if context.node.operator == "TreeEnsemble":
        trees, entries = _new_trees(context)
        index = reading.integer(context, "post_transform", 0)
        reading.require(0 <= index < 5, context, f"post_transform {index} is unknown")
        transform = learned_scores.TRANSFORMS[index]
    else:
        weights = learned_scores.float_array(context, "target_weights")
        trees, entries = _old_trees(context, weights, "target")
        transform = learned_scores.transform(context)
    _check_trees(context, trees)
    dense = _dense_weights(context, trees, entries, count, aggregate)
    attributes: dict[str, Attribute] = {
        **trees,
        "weights": dense,
        "aggregate": aggregate,
        "base_values": _base_values(context, count, dense.dtype),
        "post_transform": transform,
    }
    return Lowered(_ENSEMBLE, attributes, (0,))


def _infer_classifier(context: OperatorContext) -> list[TensorSpec]:
    rows, _ = learned_scores.rows_and_width(context)
    count = learned_scores.class_count(context)
    scores = TensorSpec(learned_scores.FLOAT32, (rows, max(count, 1)))
    return [learned_scores.label_spec(context, rows), scores]


def _lower_classifier(context: OperatorContext) -> Lowered:
    weights = learned_scores.float_array(context, "class_weights")
    trees, entries = _old_trees(context, weights, "class")
    _check_trees(context, trees)
    count = learned_scores.class_count(context)
    dense = _dense_weights(context, trees, entries, count, "SUM")
    base = learned_scores.float_array(context, "base_values").astype(dense.dtype)
    known = sorted({target for _, target, _ in entries})
    all_positive = bool((weights >= 0).all())
    second_class, threshold = "", math.nan
    if count == 2 and len(known) == 1:
        threshold = 0.5 if all_positive else 0.0
    if count == 2 and known == [0]:
        # Binary models keep the score of the *second* class under the first one's number.
        second_class = "complement" if all_positive else "negation"
        dense = dense[:, :1]
    is_clear = base.size in (0, count) if math.isnan(threshold) else not (known[0] and base.size)
    attributes: dict[str, Attribute] = {
        **trees,
        "weights": dense,
        "aggregate": "SUM",
        "base_values": base if base.size else np.zeros(1, dense.dtype),
        "threshold": threshold,
        "is_clear": int(is_clear and base.size in (0, dense.shape[1]) and count > 1),
        **learned_scores.finishing(context, second_class),
    }
    return Lowered(_CLASSIFIER, attributes, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("ai.onnx.ml.TreeEnsembleRegressor", _infer_regressor, _lower_regressor),
    OperatorEntry("ai.onnx.ml.TreeEnsemble", _infer_regressor, _lower_regressor),
    OperatorEntry("ai.onnx.ml.TreeEnsembleClassifier", _infer_classifier, _lower_classifier),
)
