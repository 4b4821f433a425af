from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import assert_same_as_onnxruntime, load, operators_of, parse, random_inputs
from onnx import TensorProto, helper
from PIL import Image

from aegis_pipe.errors import (
    AegisError,
    DynamicShapeError,
    InvalidModelError,
    KernelError,
    UnsupportedOperatorError,
)
from aegis_pipe.execution import partial_evaluation
from aegis_pipe.execution.evaluation import evaluate_graph
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.saved_ir import save_graph
from aegis_pipe.execution.shape_inference import UnknownOperandError
from aegis_pipe.tensor import TensorId

PICTURES = '<ir_version: 8, opset_import: ["" : 20]>\n'

FLATTENING = """
agraph (float[N, C, 4] x) => (float[N, M] y) {
    shape = Shape (x)
    zero = Constant <value = int64[1] {0}> ()
    batch = Gather (shape, zero)
    rest = Constant <value = int64[1] {-1}> ()
    target = Concat <axis = 0> (batch, rest)
    flat = Reshape (x, target)
    y = Relu (flat)
}
"""


def test_shape_arithmetic_folds_away() -> None:
    graph = load(FLATTENING, shapes={"x": (2, 3, 4)})
    assert operators_of(graph) == ["Reshape", "Relu"]
    assert graph.spec(TensorId("y")).shape == (2, 12)
    assert_same_as_onnxruntime(parse(FLATTENING), graph)


def test_loading_is_deterministic() -> None:
    one, other = (load(FLATTENING, shapes={"x": (2, 3, 4)}) for _ in range(2))
    assert [n.name for n in one.operators] == [n.name for n in other.operators]
    assert list(one.specs) == list(other.specs)
    assert list(one.constants) == list(other.constants)


def test_open_dimensions_are_an_error_with_the_line_to_add() -> None:
    with pytest.raises(DynamicShapeError) as caught:
        load(FLATTENING)
    assert caught.value.message == "the shapes of these inputs are open: `x` [N, C, 4]"
    assert "`shapes = { x = [1, 1, 4] }`" in caught.value.hint


def test_symbols_are_shared_between_inputs() -> None:
    text = "agraph (float[N, 2] a, float[N, 1] b) => (float[N, 2] c) { c = Add (a, b) }"
    graph = load(text, shapes={"a": (5, 2)})
    assert graph.spec(TensorId("b")).shape == (5, 1)
    with pytest.raises(InvalidModelError, match="`N` the size 6, but it is 5 elsewhere"):
        load(text, shapes={"a": (5, 2), "b": (6, 1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": {"x": (1, 2)}}, "2 dimensions, the model declares 3"),
        ({"shapes": {"x": (1, 2, 5)}}, "dimension 2 can not be 5: the model fixes it at 4"),
        ({"shapes": {"x": (1, -2, 4)}}, "the size -2"),
        ({"shapes": {"xx": (1, 2, 4)}}, "no such input\n  hint: did you mean `x`?"),
        ({"bind": {"xx": 1}}, "no such input"),
        (
            {"bind": {"x": [[1.0]]}},
            "graph input `x`: expected float32[N, C, 4], found float64[1, 1]\n"
            "  hint: write `bind = { x = [[[0.0, 0.0, ...]]] }` with your values",
        ),
        ({"bind": {"x": 1.0}}, "expected float32[N, C, 4], found float64[]\n"),
        ({"bind": {"x": [[1.0], [1.0, 2.0]]}}, "found [[1.0], [1.0, 2.0]]\n"),
        ({"bind": {"x": "no"}}, "found 'no'\n"),
        ({"bind": {"x": True}}, "found bool[]: True\n"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidModelError) as caught:
        load(FLATTENING, **options)
    assert message in str(caught.value)


def test_bound_inputs_become_constants() -> None:
    text = """
    agraph (float[4] x, int64 rate) => (float[4] y) {
        wanted = Constant <value = int64 {16000}> ()
        same = Equal (rate, wanted)
        y = If (same) <
            then_branch = one () => (float[4] p) { p = Relu (x) },
            else_branch = two () => (float[4] q) { q = Neg (x) }
        >
    }
    """
    graph = load(text, bind={"rate": 16000})
    assert graph.inputs == ("x",)
    assert operators_of(graph) == ["Relu", "Identity"]
    assert operators_of(load(text, bind={"rate": 8000})) == ["Neg", "Identity"]
    kept = load(text)
    assert operators_of(kept) == ["Equal", "Relu", "Neg", "Where"]
    for rate in (16000, 1):
        inputs = {"x": np.float32([1, -2, 3, -4]), "rate": np.array(rate)}
        assert_same_as_onnxruntime(parse(text), kept, inputs)


@pytest.mark.parametrize("value", [300, -1, 1.5, float("nan"), [1, 2.5], 2**70, False])
def test_a_bound_value_has_to_fit_its_dtype(value: object) -> None:
    text = "agraph (uint8[2] a, uint8[2] b) => (uint8[2] c) { c = Add (a, b) }"
    with pytest.raises(
        InvalidModelError, match=r"expected uint8\[2\], found .*\n.*`bind = { a = \["
    ):
        load(text, bind={"a": value})


def test_a_single_number_fills_a_shape_that_is_known() -> None:
    text = "agraph (float[2, 1] a, float[2, 3] b) => (float[2, 3] c) { c = Add (a, b) }"
    assert load(text, bind={"a": 7}).constants[TensorId("a")].tolist() == [[7], [7]]
    assert load(text, bind={"b": 0.1}).constants[TensorId("b")].shape == (2, 3)


def test_initialisers_that_are_inputs_are_constants_unless_overridden() -> None:
    text = """
    agraph (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1.0, 2.0}> { y = Add (x, w) }
    """
    assert load(text).inputs == ("x",)
    assert load(text, shapes={"w": (2,)}).inputs == ("x", "w")
    bound = load(text, bind={"w": [5.0, 6.0]})
    assert bound.constants[TensorId("w")].tolist() == [5, 6]


def test_a_branch_not_taken_is_not_even_inferred() -> None:
    text = """
    agraph (float[2] x) => (float[2] y) {
        yes = Constant <value = bool {1}> ()
        y = If (yes) <
            then_branch = one () => (float[2] p) { p = Relu (x) },
            else_branch = two () => (float[2] q) { n = NonZero (x) q = Reshape (x, n) }
        >
    }
    """
    assert operators_of(load(text)) == ["Relu", "Identity"]


def test_a_branch_that_can_not_run_names_what_leads_into_it() -> None:
    text = """
    agraph (float[4] x, int64 rate) => (float[4] y) {
        known = Constant <value = int64 {16000}> ()
        flag = Equal (rate, known)
        y = If (flag) <
            then_branch = one () => (float[4] p) { p = Relu (x) },
            else_branch = two () => (float[4] q) { w = Conv (x, x) q = Relu (w) }
        >
    }
    """
    with pytest.raises(InvalidModelError) as caught:
        load(text)
    assert "`rate` decides whether this branch runs" in caught.value.hint
    assert operators_of(load(text, bind={"rate": 16000}))[0] == "Relu"


def test_branches_of_different_shapes_need_the_condition() -> None:
    text = """
    agraph (float[4] x, bool flag) => (float[N] y) {
        y = If (flag) <
            then_branch = one () => (float[4] p) { p = Relu (x) },
            else_branch = two () => (float[8] q) { q = Concat <axis = 0> (x, x) }
        >
    }
    """
    with pytest.raises(UnknownOperandError) as caught:
        load(text)
    assert caught.value.inputs == ("flag",)
    assert "bind `flag` to a constant" in caught.value.hint


def test_an_unknown_operand_names_the_inputs_behind_it() -> None:
    text = """
    agraph (float[6] x, int64[1] rows, int64[1] columns) => (float[A, B] y) {
        target = Concat <axis = 0> (rows, columns)
        y = Reshape (x, target)
    }
    """
    with pytest.raises(UnknownOperandError) as caught:
        load(text)
    assert caught.value.inputs == ("rows", "columns")
    assert "operand 1 (`target`)" in caught.value.message
    graph = load(text, bind={"rows": [2], "columns": [3]})
    assert graph.spec(TensorId("y")).shape == (2, 3)


def test_data_dependent_shapes_are_errors() -> None:
    text = "agraph (uint8[60] x) => (uint8[H, W, 3] y) { y = ImageDecoder (x) }"
    with pytest.raises(DynamicShapeError, match="ImageDecoder") as caught:
        load(parse(text, PICTURES))
    assert not isinstance(caught.value, UnknownOperandError)


LOOP = """
agraph (float[2] x, int64 count) => (float[2] last, float[N, 2] all) {
    go = Constant <value = bool {1}> ()
    last, all = Loop (count, go, x) <
        body = step (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] u) {
            d = Identity (c)
            f = Cast <to = 1> (i)
            t = Add (s, f)
            u = Mul (t, x)
        }
    >
}
"""


def test_loops_of_known_length_unroll() -> None:
    graph = load(LOOP, bind={"count": 3})
    assert "Loop" not in operators_of(graph)
    assert graph.spec(TensorId("all")).shape == (3, 2)
    model = parse(LOOP)
    inputs = {"x": np.float32([1, -2])}
    session_inputs = inputs | {"count": np.array(3)}
    expected = evaluate_with_onnxruntime(model, session_inputs)
    for result, other in zip(evaluate_graph(graph, inputs), expected, strict=True):
        np.testing.assert_array_equal(result, other)


def evaluate_with_onnxruntime(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray]
) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, inputs))


def test_loops_too_long_to_unroll_stay_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    from aegis_pipe.execution import flattening

    monkeypatch.setattr(flattening, "UNROLLED_OPERATORS_MAX", 3)
    graph = load(LOOP, bind={"count": 5})
    assert operators_of(graph) == ["Loop"]
    assert graph.spec(TensorId("all")).shape == (5, 2)
    inputs = {"x": np.float32([1, -2])}
    expected = evaluate_with_onnxruntime(parse(LOOP), inputs | {"count": np.array(5)})
    for result, other in zip(evaluate_graph(graph, inputs), expected, strict=True):
        np.testing.assert_array_equal(result, other)


def test_stacked_outputs_of_a_loop_need_its_trip_count() -> None:
    with pytest.raises(UnknownOperandError) as caught:
        load(LOOP)
    assert caught.value.inputs == ("count",)


def test_branches_may_nest_and_capture() -> None:
    text = """
    agraph (float[2] x, bool flag, bool other) => (float[2] y) {
        doubled = Add (x, x)
        y = If (flag) <
            then_branch = one () => (float[2] p) {
                inner = Relu (doubled)
                p = If (other) <
                    then_branch = three () => (float[2] r) { r = Sub (inner, x) },
                    else_branch = four () => (float[2] s) { s = Mul (inner, doubled) }
                >
            },
            else_branch = two () => (float[2] q) { q = Neg (doubled) }
        >
    }
    """
    graph = load(text)
    assert operators_of(graph) == ["Add", "Relu", "Sub", "Mul", "Where", "Neg", "Where"]
    for flag in (True, False):
        for other in (True, False):
            inputs = {
                "x": np.float32([3, -2]),
                "flag": np.array(flag),
                "other": np.array(other),
            }
            assert_same_as_onnxruntime(parse(text), graph, inputs)


SCAN = """
agraph (float[2] s, float[3, 2] x) => (float[2] t, float[3, 2] y) {
    t, y = Scan <num_scan_inputs = 1, scan_input_directions = [1],
        body = step (float[2] a, float[2] b) => (float[2] c, float[2] d) {
            c = Add (a, b)
            d = Mul (c, b)
        }
    > (s, x)
}
"""


@pytest.mark.parametrize("limit", [4096, 2])
def test_scans_unroll_or_stay(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    from aegis_pipe.execution import flattening

    monkeypatch.setattr(flattening, "UNROLLED_OPERATORS_MAX", limit)
    graph = load(SCAN)
    assert ("Scan" in operators_of(graph)) == (limit == 2)
    assert_same_as_onnxruntime(parse(SCAN), graph)


def test_sequences_dissolve() -> None:
    text = """
    agraph (float[2, 4] x, float[2, 1] z) => (float[2, 3] y, int64 n) {
        two = Constant <value = int64 {2}> ()
        parts = SplitToSequence <axis = 1> (x, two)
        more = SequenceInsert (parts, z)
        fewer = SequenceErase (more, one)
        one = Constant <value = int64 {1}> ()
        n = SequenceLength (fewer)
        y = ConcatFromSequence <axis = 1> (fewer)
    }
    """
    graph = load(text)
    assert not [name for name in operators_of(graph) if "Sequence" in name]
    assert graph.constants[TensorId("n")].item() == 2
    inputs = random_inputs(graph)
    y, _ = evaluate_graph(graph, inputs)
    np.testing.assert_array_equal(y, np.concatenate([inputs["x"][:, :2], inputs["z"]], 1))


def test_optionals_dissolve() -> None:
    text = """
    agraph (float[2] x) => (float[2] y, bool there) {
        maybe = Optional (x)
        there = OptionalHasElement (maybe)
        y = OptionalGetElement (maybe)
    }
    """
    graph = load(text)
    assert graph.constants[TensorId("there")].item() is True
    assert operators_of(graph) == ["Identity"]


def test_functions_are_inlined_even_when_nested() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        agraph (float[2] x) => (float[2] y) <float[2] w = {3.0, 4.0}> {
            a = mine.Outer <scale = 2.0> (x)
            y = Add (a, w)
        }
        <domain: "mine", opset_import: ["" : 17, "mine" : 1]>
        Outer <scale> (p) => (q) { r = mine.Inner (p) q = Elu <alpha: float = @scale> (r) }
        <domain: "mine", opset_import: ["" : 17]>
        Inner (p) => (q) { q = Neg (p) }
        """
    )
    graph = load(model)
    assert operators_of(graph) == ["Neg", "Elu", "Add"]
    assert graph.constants[TensorId("w")].tolist() == [3, 4]
    assert_same_as_onnxruntime(model, graph)


def test_a_function_that_calls_itself() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        agraph (float[2] x) => (float[2] y) { y = mine.Again (x) }
        <domain: "mine", opset_import: ["" : 17, "mine" : 1]>
        Again (p) => (q) { q = mine.Again (p) }
        """
    )
    with pytest.raises(InvalidModelError, match="`Again` calls itself"):
        load(model)


def test_random_operators_are_not_folded() -> None:
    text = "agraph () => (float[2, 3] y) { y = RandomNormal <shape = [2, 3]> () }"
    assert operators_of(load(text)) == ["RandomNormal"]


def test_folding_stays_within_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    agraph (float[1] x) => (float[1000] y) {
        shape = Constant <value = int64[1] {1000}> ()
        ones = ConstantOfShape (shape)
        y = Add (x, ones)
    }
    """
    assert operators_of(load(text)) == ["Add"]
    monkeypatch.setattr(partial_evaluation, "FOLDED_BYTES_MAX", 3000)
    assert operators_of(load(text)) == ["ConstantOfShape", "Add"]


def test_dequantised_weights_are_left_to_the_passes() -> None:
    text = """
    agraph (float[2] x) => (float[2] y) {
        q = Constant <value = int8[2] {3, -4}> ()
        scale = Constant <value = float {0.5}> ()
        w = DequantizeLinear (q, scale)
        y = Add (x, w)
    }
    """
    assert operators_of(load(text)) == ["DequantizeLinear", "Add"]


def test_declared_shapes_are_not_believed() -> None:
    model = parse("agraph (float[2, 3] x) => (float[7] y) { z = Transpose (x) y = Relu (z) }")
    model.graph.value_info.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [9]))
    graph = load(model)
    assert graph.spec(TensorId("z")).shape == (3, 2)
    assert graph.spec(TensorId("y")).shape == (3, 2)


def test_declared_shapes_are_the_last_resort() -> None:
    def picture(*size: int) -> np.ndarray:
        file = io.BytesIO()
        Image.new("RGB", size, (1, 2, 3)).save(file, "BMP")
        return np.frombuffer(file.getvalue(), np.uint8)

    data = picture(2, 1)
    text = f"agraph (uint8[{data.size}] x) => (uint8[1, 2, 3] y) {{ y = ImageDecoder (x) }}"
    graph = load(parse(text, PICTURES))
    assert graph.spec(TensorId("y")).shape == (1, 2, 3)
    (y,) = evaluate_graph(graph, {"x": data})
    assert y.tolist() == [[[1, 2, 3], [1, 2, 3]]]
    tall = picture(1, 1)
    graph = load(parse(text.replace(f"[{data.size}]", f"[{tall.size}]"), PICTURES))
    with pytest.raises(KernelError, match=r"came out as uint8\[1, 1, 3\], not uint8\[1, 2, 3\]"):
        evaluate_graph(graph, {"x": tall})


HOSTILE = ['{"a": [1, 2]}', "0", "onnx::X", "a b\n\t`'\"", "Ü→", "then_branch/0", "1.5"]


def test_hostile_names() -> None:
    names = ["in", *HOSTILE]
    nodes = [
        helper.make_node("Relu", [a], [b], name=label)
        for a, b, label in zip(
            names[:-1], names[1:], ["", "", "same", "same", "{}", "", "1"], strict=True
        )
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("in", TensorProto.FLOAT, [2])],
        [value(HOSTILE[-1], TensorProto.FLOAT, [2])],
    )
    loaded = load(helper.make_model(graph))
    assert loaded.outputs == (HOSTILE[-1],)
    assert len({node.name for node in loaded.operators}) == len(HOSTILE)
    assert all(node.name for node in loaded.operators)


def test_inlined_names_do_not_collide_with_the_models_own() -> None:
    text = """
    agraph (float[2] x) => (float[2] y) {
        yes = Constant <value = bool {1}> ()
        a = If (yes) <
            then_branch = one () => (float[2] p) { t = Relu (x) p = Neg (t) },
            else_branch = two () => (float[2] q) { q = Neg (x) }
        >
        t = Exp (a)
        y = Add (t, a)
    }
    """
    graph = load(text)
    assert_same_as_onnxruntime(parse(text), graph)


def test_unsorted_nodes_are_sorted() -> None:
    model = parse("agraph (float[2] x) => (float[2] y) { a = Relu (x) b = Neg (a) y = Exp (b) }")
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert operators_of(load(model)) == ["Relu", "Neg", "Exp"]


def model_of(*nodes: onnx.NodeProto, opset: int = 17) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "g",
        [value("x", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, [2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            model_of(
                helper.make_node("Add", ["x", "b"], ["a"]),
                helper.make_node("Relu", ["a"], ["b"]),
                helper.make_node("Relu", ["b"], ["y"]),
            ),
            "cycle",
        ),
        (model_of(helper.make_node("Add", ["x", "gone"], ["y"])), "`gone` is neither"),
        (model_of(helper.make_node("Relu", ["x"], ["z"])), "output `y` is written by no"),
        (
            model_of(helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])),
            "written twice",
        ),
        (model_of(helper.make_node("Relu", ["x"], ["y"]), opset=5), "of opset 5 is older"),
        (model_of(helper.make_node("Relu", ["x"], ["y"]), opset=999), "opset 999 is newer"),
        (onnx.ModelProto(ir_version=8), "has no graph"),
        (model_of(helper.make_node("MatMul", ["x", "x"], ["y"], "m")), None),
        (model_of(helper.make_node("If", ["x"], ["y"])), "`then_branch` is missing"),
        (model_of(helper.make_node("Relu", ["x", "x"], ["y"])), "has 2 inputs and 1 outputs"),
        (model_of(helper.make_node("Loop", [], ["y"])), "has 0 inputs"),
    ],
)
def test_unsound_models(model: onnx.ModelProto, message: str | None) -> None:
    if message is None:
        # Two vectors multiply to a scalar, whatever the output declares.
        assert load(model).spec(TensorId("y")).shape == ()
        return
    with pytest.raises(AegisError, match=message) as caught:
        load(model)
    assert isinstance(caught.value, InvalidModelError)


def test_format_newer_than_known() -> None:
    model = model_of(helper.make_node("Relu", ["x"], ["y"]))
    model.ir_version = 1000
    with pytest.raises(InvalidModelError, match="IR version 1000"):
        load(model)


def test_unknown_operators_name_the_nearest() -> None:
    with pytest.raises(UnsupportedOperatorError) as caught:
        load(model_of(helper.make_node("Reluu", ["x"], ["y"], "odd")))
    assert "node `odd` (Reluu)" in str(caught.value)
    assert "the nearest is `Relu`" in caught.value.hint


def test_unknown_domains() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"no operator `made.up.Relu`"):
        load(model_of(helper.make_node("Relu", ["x"], ["y"], domain="made.up")))


def test_sequences_and_strings_can_not_enter() -> None:
    value = helper.make_tensor_value_info
    text = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.STRING, [2])],
        [value("y", TensorProto.STRING, [2])],
    )
    with pytest.raises(UnsupportedOperatorError, match="graph input `x`: is a text tensor"):
        load(helper.make_model(text))
    sequence = "agraph (seq(float[2]) x) => (float[2] y) { y = ConcatFromSequence <axis=0> (x) }"
    with pytest.raises(UnsupportedOperatorError, match="is a sequence"):
        load(sequence)


def test_sequences_can_not_leave() -> None:
    text = "agraph (float[2] x) => (seq(float[2]) y) { y = SequenceConstruct (x) }"
    with pytest.raises(InvalidModelError, match="output `y` is a sequence"):
        load(text)


def saved(path: Path, model: onnx.ModelProto | None = None) -> Path:
    onnx.save(model or model_of(helper.make_node("Relu", ["x"], ["y"])), path)
    return path


def test_files_that_are_not_models(tmp_path: Path) -> None:
    whole = saved(tmp_path / "model.onnx", parse(FLATTENING)).read_bytes()
    files = {
        "cut.onnx": (whole[:-7], "cut short"),
        "empty.onnx": (b"", "is empty"),
        "text.onnx": (b"hello, this is no model at all", "is not an ONNX model"),
        "json.onnx": (json.dumps({"a": 1}).encode(), "is not an ONNX model"),
        "zeros.onnx": (bytes(100), "is not an ONNX model"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidModelError, match=message) as caught:
            ModelLoader().load(tmp_path / name)
        assert name in str(caught.value)
        assert caught.value.hint
    with pytest.raises(InvalidModelError, match="is a directory"):
        ModelLoader().load(tmp_path)
    with pytest.raises(InvalidModelError, match="No such file"):
        ModelLoader().load(tmp_path / "nowhere.onnx")


def external(tmp_path: Path) -> Path:
    weights = np.arange(600, dtype=np.float32)
    text = "agraph (float[600] x) => (float[600] y) { y = Add (x, w) }"
    model = parse(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=16)
    return path


def test_external_data(tmp_path: Path) -> None:
    graph = ModelLoader().load(external(tmp_path))
    assert graph.name == "model"
    np.testing.assert_array_equal(graph.constants[TensorId("w")], np.arange(600))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "can not be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "cut short"),
        (lambda path: path.write_bytes(b""), "is empty"),
    ],
)
def test_damaged_external_data(tmp_path: Path, damage: object, message: str) -> None:
    path = external(tmp_path)
    assert callable(damage)
    damage(tmp_path / "weights.data")
    with pytest.raises(InvalidModelError, match=message):
        ModelLoader().load(path)


def test_external_data_stays_in_its_folder(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    (tmp_path / "inner").mkdir()
    model.graph.initializer[0].external_data[0].value = "../weights.data"
    (tmp_path / "inner" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModelError, match="leads out of the model's folder"):
        ModelLoader().load(tmp_path / "inner" / "model.onnx")


def test_saved_graphs_load_by_their_content(tmp_path: Path) -> None:
    graph: ExecutionGraph = load(FLATTENING, shapes={"x": (2, 3, 4)})
    save_graph(graph, tmp_path / "graph.bin")
    loaded = ModelLoader().load(tmp_path / "graph.bin")
    assert operators_of(loaded) == operators_of(graph)
    with pytest.raises(InvalidModelError, match="is not what was saved"):
        ModelLoader().load(tmp_path / "graph.bin", LoadOptions(shapes={"x": (1, 3, 4)}))
    with pytest.raises(InvalidModelError, match="can not be bound"):
        ModelLoader().load(tmp_path / "graph.bin", LoadOptions(bind={"x": 1}))


def test_sparse_initialisers_become_dense() -> None:
    model = parse("agraph (float[3] x) => (float[3] y) { y = Add (x, w) }")
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [5.0, 7.0])
    positions = helper.make_tensor("at", TensorProto.INT64, [2], [0, 2])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, positions, [3]))
    assert load(model).constants[TensorId("w")].tolist() == [5, 0, 7]


def test_unread_optional_outputs_are_left_out() -> None:
    text = "agraph (float[2] x) => (float[2] y) { y, mask = Dropout (x) }"
    (node,) = load(text).operators
    assert node.outputs == ("y",)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_raise_no_other_error(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    options = {
        FLATTENING: LoadOptions(shapes={"x": (2, 3, 4)}),
        LOOP: LoadOptions(bind={"count": 3}),
        SCAN: LoadOptions(),
    }
    path = tmp_path / "damaged.onnx"
    for _ in range(60):
        text = list(options)[random.integers(len(options))]
        content = bytearray(parse(text).SerializeToString())
        for _ in range(random.integers(1, 4)):
            content[random.integers(len(content))] = random.integers(256)
        path.write_bytes(content)
        try:
            ModelLoader().load(path, options[text])
        except AegisError as error:
            assert error.message  # noqa: PT017 - many loads succeed
