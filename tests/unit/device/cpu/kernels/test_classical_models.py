"""Classical models of ai.onnx.ml, against ONNX Runtime and the libraries they were fitted with."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.case import node as node_cases

from aegis_pipe.errors import InvalidModelError, KernelError
from tests.unit.kernel_driver import Driven, drive, lower, make_node, operator_node

DOMAIN = "ai.onnx.ml"


def _random(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def _onnxruntime(
    proto: onnx.NodeProto,
    values: Sequence[np.ndarray],
    output_types: Sequence[int],
    opset: int = 3,
) -> list[np.ndarray]:
    import onnxruntime

    feeds = dict(zip(proto.input, values, strict=True))
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in feeds.items()
    ]
    outputs = [
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in zip(proto.output, output_types, strict=True)
    ]
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, opset)]
    graph = helper.make_graph([proto], "one", inputs, outputs)
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def _driven(proto: onnx.NodeProto, values: Sequence[np.ndarray], opset: int = 3) -> Driven:
    driven = drive(operator_node(proto, opset), values)
    assert driven is not None
    return driven


def _compare(
    operator: str,
    values: Sequence[np.ndarray],
    output_types: Sequence[int],
    attributes: Mapping[str, object],
    opset: int = 3,
    atol: float = 1e-5,
) -> Driven:
    proto = make_node(operator, len(values), len(output_types), domain=DOMAIN, **attributes)
    driven = _driven(proto, values, opset)
    expected = _onnxruntime(proto, values, output_types, opset)
    for actual, wanted in zip(driven.outputs, expected, strict=True):
        assert actual is not None
        assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=atol)
    return driven


def _official_cases() -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = node_cases.collect_testcases(None)
    return {
        case.name: case
        for case in every
        if len(case.model.graph.node) == 1
        and case.model.graph.node[0].domain == DOMAIN
        and case.model.graph.node[0].op_type.startswith(("LabelEncoder", "TreeEnsemble"))
        and all(
            value.type.tensor_type.elem_type not in (0, onnx.TensorProto.STRING)
            for value in (*case.model.graph.input, *case.model.graph.output)
        )
    }


OFFICIAL = _official_cases()


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_case(name: str) -> None:
    case = OFFICIAL[name]
    proto = case.model.graph.node[0]
    opset = next(o.version for o in case.model.opset_import if o.domain == DOMAIN)
    for given, expected in case.data_sets:
        driven = _driven(proto, [np.asarray(value) for value in given], opset)
        for actual, wanted in zip(driven.outputs, expected, strict=True):
            assert actual is not None
            assert actual.dtype == wanted.dtype
            np.testing.assert_allclose(actual, wanted, rtol=case.rtol, atol=case.atol)


# Trees


def _tree_lists(trees: Sequence[object], weights_of: object, prefix: str) -> dict[str, list]:
    """Write scikit-learn's trees as ai.onnx.ml lists them; `weights_of(tree, node)` of leaves."""
    names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    lists: dict[str, list] = {f"nodes_{name}": [] for name in names}
    lists |= {f"{prefix}_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}
    for number, tree in enumerate(trees):
        for node in range(tree.node_count):
            is_leaf = tree.children_left[node] < 0
            row = (
                number,
                node,
                0 if is_leaf else int(tree.feature[node]),
                "LEAF" if is_leaf else "BRANCH_LEQ",
                0.0 if is_leaf else float(np.float32(tree.threshold[node])),
                0 if is_leaf else int(tree.children_left[node]),
                0 if is_leaf else int(tree.children_right[node]),
            )
            for name, value in zip(names, row, strict=True):
                lists[f"nodes_{name}"].append(value)
            for target, weight in weights_of(tree, node) if is_leaf else ():
                entry = (number, node, target, float(weight))
                for name, value in zip(
                    ("treeids", "nodeids", "ids", "weights"), entry, strict=True
                ):
                    lists[f"{prefix}_{name}"].append(value)
    return lists


def test_random_forest_regression() -> None:
    from sklearn.ensemble import RandomForestRegressor

    data = _random(400, 6)
    targets = np.stack([data[:, 0] * data[:, 1], np.sin(data[:, 2])], axis=1)
    forest = RandomForestRegressor(20, max_depth=7, random_state=0).fit(data, targets)
    trees = [each.tree_ for each in forest.estimators_]
    lists = _tree_lists(trees, lambda tree, node: enumerate(tree.value[node][:, 0]), "target")
    attributes = {**lists, "n_targets": 2, "aggregate_function": "AVERAGE"}
    queries = _random(700, 6, seed=1)
    driven = _compare("TreeEnsembleRegressor", [queries], [FLOAT], attributes)
    np.testing.assert_allclose(driven.outputs[0], forest.predict(queries), rtol=1e-4, atol=1e-5)
    assert driven.hidden_bytes < 200 << 10


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX"])
def test_random_forest_of_three_classes(transform: str) -> None:
    from sklearn.ensemble import RandomForestClassifier

    data = _random(300, 4)
    labels = np.array([10, 20, 30])[np.digitize(data[:, 0] + data[:, 1] ** 2, [0, 1])]
    forest = RandomForestClassifier(15, max_depth=6, random_state=0).fit(data, labels)

    def weights(tree: object, node: int) -> list[tuple[int, float]]:
        value = tree.value[node][0]
        return list(enumerate(value / value.sum() / 15))

    lists = _tree_lists([each.tree_ for each in forest.estimators_], weights, "class")
    attributes = {**lists, "classlabels_int64s": [10, 20, 30], "post_transform": transform}
    queries = _random(500, 4, seed=1)
    driven = _compare("TreeEnsembleClassifier", [queries], [INT64, FLOAT], attributes)
    np.testing.assert_array_equal(driven.outputs[0], forest.predict(queries))


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_gradient_boosting_of_two_classes(transform: str) -> None:
    from sklearn.ensemble import GradientBoostingClassifier

    data = _random(300, 4)
    labels = (data[:, 0] > data[:, 1] * data[:, 2]).astype(np.int64)
    model = GradientBoostingClassifier(n_estimators=25, random_state=0).fit(data, labels)
    trees = [each.tree_ for each in model.estimators_[:, 0]]
    lists = _tree_lists(trees, lambda tree, node: [(0, 0.1 * tree.value[node][0, 0])], "class")
    prior = float(np.log(labels.mean() / (1 - labels.mean())))
    attributes = {
        **lists,
        "classlabels_int64s": [0, 1],
        "base_values": [prior],
        "post_transform": transform,
    }
    queries = _random(200, 4, seed=1)
    driven = _compare("TreeEnsembleClassifier", [queries], [INT64, FLOAT], attributes)
    np.testing.assert_array_equal(driven.outputs[0], model.predict(queries))
    if transform == "LOGISTIC":
        np.testing.assert_allclose(driven.outputs[1], model.predict_proba(queries), atol=1e-5)


STUMPS = {
    "nodes_treeids": [0] * 5,
    "nodes_nodeids": [0, 1, 2, 3, 4],
    "nodes_featureids": [0, 0, 1, 0, 0],
    "nodes_values": [0.5, 0.0, 1.5, 0.0, 0.0],
    "nodes_truenodeids": [1, 0, 3, 0, 0],
    "nodes_falsenodeids": [2, 0, 4, 0, 0],
}
MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]
EDGES = np.array(
    list(itertools.product([-1, 0.5, np.nextafter(np.float32(0.5), 1), np.nan], [1.5, 2, np.nan])),
    np.float32,
)


@pytest.mark.parametrize("missing", [None, [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 1, 0, 0]])
@pytest.mark.parametrize("modes", list(itertools.product(MODES, MODES)))
def test_every_comparison_at_its_threshold(
    modes: tuple[str, str], missing: list[int] | None
) -> None:
    attributes = {
        **STUMPS,
        "nodes_modes": [modes[0], "LEAF", modes[1], "LEAF", "LEAF"],
        "target_treeids": [0] * 3,
        "target_nodeids": [1, 3, 4],
        "target_ids": [0] * 3,
        "target_weights": [1.0, 2.0, 4.0],
        "n_targets": 1,
        "base_values": [0.25],
    }
    if missing:
        attributes["nodes_missing_value_tracks_true"] = missing
    _compare("TreeEnsembleRegressor", [EDGES], [FLOAT], attributes)


@pytest.mark.parametrize("first_class", [0, 1])
@pytest.mark.parametrize("weights", [[0.1, 0.4, 0.9], [-0.7, 0.2, 0.9]])
@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_one_score_for_two_classes(transform: str, weights: list[float], first_class: int) -> None:
    attributes = {
        **STUMPS,
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"],
        "class_treeids": [0] * 3,
        "class_nodeids": [1, 3, 4],
        "class_ids": [first_class] * 3,
        "class_weights": weights,
        "classlabels_int64s": [5, 7],
        "post_transform": transform,
    }
    _compare("TreeEnsembleClassifier", [EDGES], [INT64, FLOAT], attributes)


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_aggregates(aggregate: str, dtype: type) -> None:
    from sklearn.tree import DecisionTreeRegressor

    data = np.round(_random(60, 3) * 3)
    trees = [
        DecisionTreeRegressor(max_depth=d, random_state=d).fit(data, data[:, d] * 0.7).tree_
        for d in (1, 2)
    ]

    def weights(tree: object, node: int) -> list[tuple[int, float]]:
        """Let each tree leave out one of three targets."""
        first = 0 if tree is trees[0] else 1
        return [(first + i, tree.value[node][0, 0] * (i + 1)) for i in range(2)]

    lists = _tree_lists(trees, weights, "target")
    attributes = {**lists, "n_targets": 3, "aggregate_function": aggregate}
    attributes["base_values"] = [0.5, 0.25, 0.125]
    _compare("TreeEnsembleRegressor", [data.astype(dtype)], [FLOAT], attributes)


def test_a_forest_of_leaves_alone() -> None:
    attributes = {
        "nodes_treeids": [0, 1],
        "nodes_nodeids": [0, 0],
        "nodes_featureids": [0, 0],
        "nodes_values": [0.0, 0.0],
        "nodes_modes": ["LEAF", "LEAF"],
        "nodes_truenodeids": [0, 0],
        "nodes_falsenodeids": [0, 0],
        "target_treeids": [0, 1],
        "target_nodeids": [0, 0],
        "target_ids": [0, 0],
        "target_weights": [1.5, 0.25],
        "n_targets": 1,
    }
    proto = make_node("TreeEnsembleRegressor", 1, domain=DOMAIN, **attributes)
    driven = _driven(proto, [_random(3, 2)])
    np.testing.assert_array_equal(driven.outputs[0], np.full((3, 1), 1.75, np.float32))


def test_set_membership_with_missing_values() -> None:
    def tensor(values: list[float], dtype: type = np.float32) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, dtype))

    attributes = {
        "nodes_featureids": [0, 0],
        "nodes_splits": tensor([0.0, 4.0]),
        "nodes_modes": tensor([6, 0], np.uint8),
        "nodes_truenodeids": [0, 1],
        "nodes_falsenodeids": [1, 2],
        "nodes_trueleafs": [1, 1],
        "nodes_falseleafs": [0, 1],
        "nodes_missing_value_tracks_true": [1, 0],
        "membership_values": tensor([1.2, 3.7, 8.0, 9.0, np.nan]),
        "leaf_targetids": [0, 0, 0],
        "leaf_weights": tensor([1.0, 10.0, 100.0]),
        "tree_roots": [0],
        "n_targets": 1,
        "aggregate_function": 1,
        "post_transform": 0,
    }
    proto = make_node("TreeEnsemble", 1, domain=DOMAIN, **attributes)
    data = np.array([[1.2], [3.4], [8.0], [np.nan], [12], [7], [9.0]], np.float32)
    expected = np.array([[1], [10], [1], [1], [100], [100], [1]], np.float32)
    np.testing.assert_array_equal(_driven(proto, [data], 5).outputs[0], expected)


def test_a_tree_that_leads_back_to_itself_is_refused() -> None:
    attributes = {
        **STUMPS,
        "nodes_truenodeids": [1, 0, 0, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"],
        "target_treeids": [0],
        "target_nodeids": [1],
        "target_ids": [0],
        "target_weights": [1.0],
        "n_targets": 1,
    }
    node = operator_node(make_node("TreeEnsembleRegressor", 1, domain=DOMAIN, **attributes), 3)
    with pytest.raises(InvalidModelError, match="leads back to itself"):
        lower(node, [EDGES])


# Linear models and support vector machines


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("classes", [2, 3])
def test_linear_classifier(classes: int, transform: str, dtype: type) -> None:
    scores = 1 if classes == 2 else classes
    attributes = {
        "coefficients": _random(scores, 5).ravel().tolist(),
        "intercepts": _random(scores, seed=1).tolist(),
        "classlabels_ints": [7, 3, 5][:classes],
        "post_transform": transform,
    }
    data = (_random(300, 5, seed=2) * 3).astype(dtype)
    _compare("LinearClassifier", [data], [INT64, FLOAT], attributes, opset=1)


@pytest.mark.parametrize("targets", [1, 3])
def test_linear_regressor(targets: int) -> None:
    attributes = {
        "coefficients": _random(targets, 5).ravel().tolist(),
        "intercepts": _random(targets, seed=1).tolist(),
        "targets": targets,
    }
    _compare("LinearRegressor", [_random(20, 5)], [FLOAT], attributes, opset=1)


def test_probit_of_probabilities() -> None:
    attributes = {"coefficients": [1.0, 0.0, 0.0, 1.0], "intercepts": [0.0, 0.0], "targets": 2}
    data = np.random.default_rng(0).uniform(0.01, 0.99, (30, 2)).astype(np.float32)
    attributes["post_transform"] = "PROBIT"
    _compare("LinearRegressor", [data], [FLOAT], attributes, opset=1)


MACHINES = [("linear", "LINEAR"), ("rbf", "RBF"), ("poly", "POLY"), ("sigmoid", "SIGMOID")]


def _kernel_attributes(model: object, name: str) -> dict[str, object]:
    degree = 3.0
    return {
        "kernel_type": name,
        "kernel_params": [float(model._gamma), float(model.coef0), degree],
        "support_vectors": model.support_vectors_.astype(np.float32).ravel().tolist(),
        "rho": model.intercept_.astype(np.float32).tolist(),
    }


@pytest.mark.parametrize(("kernel", "name"), MACHINES)
def test_support_vector_regression(kernel: str, name: str) -> None:
    from sklearn.svm import SVR

    data = _random(80, 4)
    model = SVR(kernel=kernel, coef0=0.5).fit(data, data[:, 0] - data[:, 1] ** 2)
    attributes = {
        **_kernel_attributes(model, name),
        "coefficients": model.dual_coef_.astype(np.float32).ravel().tolist(),
        "n_supports": len(model.support_vectors_),
    }
    queries = _random(50, 4, seed=1)
    driven = _compare("SVMRegressor", [queries], [FLOAT], attributes, opset=1, atol=1e-4)
    np.testing.assert_allclose(driven.outputs[0][:, 0], model.predict(queries), atol=1e-4)


@pytest.mark.parametrize("one_class", [0, 1])
def test_linear_support_vector_regression(one_class: int) -> None:
    attributes = {
        "kernel_type": "LINEAR",
        "kernel_params": [0.0, 0.0, 3.0],
        "coefficients": [0.5, -0.25, 2.0],
        "rho": [0.125],
        "n_supports": 0,
        "one_class": one_class,
    }
    _compare("SVMRegressor", [_random(20, 3)], [FLOAT], attributes, opset=1)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("kernel", "name"), MACHINES)
def test_support_vector_classification(
    kernel: str, name: str, classes: int, calibrated: bool, transform: str
) -> None:
    from sklearn.svm import SVC

    data = _random(120, 4)
    labels = np.digitize(data[:, 0] + data[:, 1] * data[:, 2], [-0.7, 0, 0.7][: classes - 1])
    model = SVC(kernel=kernel, coef0=0.5, decision_function_shape="ovo").fit(data, labels)
    pairs = classes * (classes - 1) // 2
    # scikit-learn turns the sign of a pair of two classes.
    sign = -1 if classes == 2 else 1
    attributes = {
        **_kernel_attributes(model, name),
        "rho": (sign * model.intercept_).astype(np.float32).tolist(),
        "coefficients": (sign * model.dual_coef_).astype(np.float32).ravel().tolist(),
        "vectors_per_class": model.n_support_.tolist(),
        "classlabels_ints": list(range(classes)),
        "post_transform": transform,
    }
    if calibrated:
        attributes |= {"prob_a": np.linspace(-2, -1, pairs), "prob_b": np.linspace(-1, 1, pairs)}
    queries = _random(60, 4, seed=1)
    driven = _compare("SVMClassifier", [queries], [INT64, FLOAT], attributes, opset=1, atol=2e-4)
    np.testing.assert_array_equal(driven.outputs[0], model.predict(queries))


def test_linear_support_vector_classification() -> None:
    attributes = {
        "kernel_type": "LINEAR",
        "kernel_params": [0.0, 0.0, 3.0],
        "coefficients": _random(3, 4).ravel().tolist(),
        "rho": [0.125],
        "classlabels_ints": [4, 2, 9],
        "post_transform": "SOFTMAX",
    }
    _compare("SVMClassifier", [_random(20, 4)], [INT64, FLOAT], attributes, opset=1)


# Features


def test_feature_vectorizer() -> None:
    values = [_random(3, 2), _random(3, 4, seed=1)]
    _compare("FeatureVectorizer", values, [FLOAT], {"inputdimensions": [2, 4]}, opset=1)


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_one_hot_encoder(dtype: type) -> None:
    data = np.array([[3, 1], [9, -4]], dtype)
    attributes = {"cats_int64s": [9, 3, -4], "zeros": 1}
    _compare("OneHotEncoder", [data], [FLOAT], attributes, opset=1)
    proto = make_node("OneHotEncoder", 1, domain=DOMAIN, **{**attributes, "zeros": 0})
    with pytest.raises(KernelError, match="1 is none of the categories"):
        drive(operator_node(proto, 1), [data])


def test_label_encoder() -> None:
    keys = {"keys_int64s": [5, 3, 9], "values_floats": [0.5, 0.25, 0.125], "default_float": -1.0}
    _compare("LabelEncoder", [np.array([[3, 4], [9, 5]])], [FLOAT], keys, opset=2)
    reverse = {"keys_floats": [0.5, np.nan], "values_int64s": [1, 2], "default_int64": 3}
    data = np.array([0.5, np.nan, 0.1], np.float32)
    _compare("LabelEncoder", [data], [INT64], reverse, opset=4)


@pytest.mark.parametrize("operator", ["LinearClassifier", "SVMClassifier", "LabelEncoder"])
def test_nothing_large_is_hidden(operator: str) -> None:
    data = _random(20_000, 8)
    attributes: dict[str, object] = {"classlabels_ints": [0, 1, 2]}
    if operator == "LabelEncoder":
        data = np.arange(160_000) % 700
        attributes = {"keys_int64s": list(range(500)), "values_floats": [0.5] * 500}
    elif operator == "LinearClassifier":
        attributes |= {"coefficients": _random(24).tolist(), "intercepts": [0.0] * 3}
        attributes |= {"post_transform": "SOFTMAX"}
    else:
        attributes |= {"coefficients": _random(18).tolist(), "rho": [0.0] * 3}
        attributes |= {"support_vectors": _random(72).tolist(), "vectors_per_class": [3, 3, 3]}
        attributes |= {"kernel_type": "RBF", "kernel_params": [0.1, 0.0, 3.0]}
        attributes |= {"prob_a": [-1.0] * 3, "prob_b": [0.0] * 3}
    count = 1 if operator == "LabelEncoder" else 2
    driven = _driven(make_node(operator, 1, count, domain=DOMAIN, **attributes), [data])
    assert driven.hidden_bytes < 400 << 10
