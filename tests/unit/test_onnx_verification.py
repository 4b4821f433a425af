"""Models beside their references; references that are wrong, missing, or contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aegis_pipe import onnx_verification
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.registry import open_device
from aegis_pipe.errors import InvalidInputError, InvalidModelError, PermanentError
from aegis_pipe.execution.deployment import ModelOrder
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.saved_ir import save_graph
from aegis_pipe.onnx_verification import (
    ModelVerification,
    ReferenceModel,
    VerificationOptions,
    verify_model,
)
from tests.choosing_model import BOXES, boxes_with_scores, choosing_model

OPSET = helper.make_opsetid("", 17)


@pytest.fixture
def verify(model_path: Path) -> Iterator:
    clock = SystemClock()
    with open_device("cpu", clock=clock).context as context:
        stream = context.create_stream(0)

        def run(
            load: LoadOptions | None = None, path: Path = model_path, **options
        ) -> ModelVerification:
            order = ModelOrder("m", path, load or LoadOptions())
            (result,) = verify_model(order, context, stream, clock, VerificationOptions(**options))
            return result

        yield run
        stream.close()


def weight(name: str, value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.full((8, 8), value, np.float32), name)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """`x` -> first -> Tanh -> second -> Tanh -> `y`, `x` of open batch; an output of `first`."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Tanh", ["a"], ["b"], name="bend"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="second"),
        helper.make_node("Tanh", ["c"], ["y"], name="last"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 8]) for n in "xya"]
    graph = helper.make_graph(
        nodes, "g", values[:1], values[1:], [weight("w1", 0.1), weight("w2", 0.2)]
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[OPSET], ir_version=9), path)
    return path


BATCH = LoadOptions({"x": (3, 8)})


def test_both_references_agree(verify) -> None:
    result = verify(BATCH)
    assert result.passed
    assert [output.name for output in result.outputs] == ["y", "a"]
    assert set(result.outputs[0].differences) == {"onnxruntime", "onnx"}
    assert result.outputs[0].differences["onnx"].correlation > 0.999
    assert result.not_run == {}
    assert result.first_difference is None


def test_every_precision_is_computed_and_beside_the_same_references(
    model_path: Path, monkeypatch
) -> None:
    """The GPU's kernels, run on the host: halves are further away, fp16 less than bf16."""
    host_device = pytest.importorskip("tests.unit.device.cuda.host_device")
    if host_device.COMPILER is None:
        pytest.skip("no g++")
    runs = []
    evaluate = onnx_verification.REFERENCES["onnx"]
    monkeypatch.setitem(
        onnx_verification.REFERENCES, "onnx", lambda model: runs.append(1) or evaluate(model)
    )
    clock, order = SystemClock(), ModelOrder("m", model_path, BATCH)
    precisions = ("fp32", "fp16", "bf16")
    options = VerificationOptions(precisions=precisions, references=("onnx",))
    with host_device.HostContext(clock) as context:
        stream = context.create_stream(0)
        results = verify_model(order, context, stream, clock, options)
        stream.close()
    assert [result.precision for result in results] == [*precisions]
    assert [result.arithmetic.name for result in results] == [*precisions]
    assert all(result.passed for result in results)
    errors = [result.outputs[0].differences["onnx"].relative for result in results]
    assert errors[0] < 1e-6 < 1e-5 < errors[1] < errors[2] < 1e-2
    assert runs == [1]


def test_a_precision_that_the_device_has_not_is_refused(verify) -> None:
    with pytest.raises(PermanentError, match="precision `bf16` is not supported by cpu"):
        verify(BATCH, precisions=("bf16",))


def test_given_inputs_are_used(verify) -> None:
    result = verify(BATCH, inputs={"x": np.zeros((3, 8), np.float32)})
    assert result.outputs[0].differences["onnx"].max_absolute == 0
    assert result.outputs[0].note == "all its values are equal, so this says little"
    with pytest.raises(InvalidInputError, match=r"expected float32\[3, 8\]"):
        verify(BATCH, inputs={"x": np.zeros((2, 8), np.float32)})


def wrong(initialiser: str):
    """Return a reference that runs the model with another weight."""

    def run(model: ReferenceModel) -> dict[str, np.ndarray]:
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        for tensor in proto.graph.initializer:
            if tensor.name == initialiser:
                tensor.CopyFrom(weight(initialiser, 0.3))
        return onnx_verification._reference_evaluator(replace(model, proto=proto))

    return run


@pytest.mark.parametrize(
    ("initialiser", "node", "tensor"), [("w1", "first", "a"), ("w2", "second", "c")]
)
def test_the_first_node_that_differs_is_named(
    verify, monkeypatch, initialiser: str, node: str, tensor: str
) -> None:
    monkeypatch.setitem(onnx_verification.REFERENCES, "onnx", wrong(initialiser))
    result = verify(BATCH, references=("onnx",))
    assert not result.passed
    first = result.first_difference
    assert (first.reference, first.node, first.tensor) == ("onnx", node, tensor)
    assert first.operator == "MatMul"
    assert first.kernel
    assert first.before < 1e-5 < 0.1 < first.after


def test_a_difference_that_vanishes_when_tensors_are_kept_names_no_node(
    verify, monkeypatch
) -> None:
    def run(model: ReferenceModel) -> dict[str, np.ndarray]:
        outputs = onnx_verification._reference_evaluator(model)
        return outputs if model.edited else {name: -value for name, value in outputs.items()}

    monkeypatch.setitem(onnx_verification.REFERENCES, "onnx", run)
    result = verify(BATCH, references=("onnx",))
    assert not result.passed
    assert result.first_difference.node == ""
    assert result.first_difference.tensor == ""


def test_a_constant_that_differs_was_computed_while_loading(
    verify, monkeypatch, tmp_path: Path
) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [8, 8]) for n in "xyz"]
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Exp", ["w1"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight("w1", 0.1)])
    path = tmp_path / "constant.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[OPSET], ir_version=9), path)
    monkeypatch.setitem(onnx_verification.REFERENCES, "onnx", wrong("w1"))
    result = verify(LoadOptions(), path, references=("onnx",))
    assert [output.passed for output in result.outputs] == [True, False]
    assert (result.first_difference.node, result.first_difference.tensor) == ("", "z")


def test_one_reference_against_the_other(verify, monkeypatch) -> None:
    monkeypatch.setitem(onnx_verification.REFERENCES, "onnx", wrong("w2"))
    result = verify(BATCH)
    y, a = result.outputs
    assert result.passed
    assert not y.differences["onnx"].passed
    assert y.note == "the references differ; this is as onnxruntime has it"
    assert a.note == ""
    assert result.first_difference.node == "second"


def test_two_references_that_agree_outvote_us(verify, monkeypatch) -> None:
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(onnx_verification.REFERENCES, name, wrong("w2"))
    assert not verify(BATCH).passed


def test_the_tolerance_given_replaces_that_of_the_arithmetic(verify, monkeypatch) -> None:
    monkeypatch.setitem(onnx_verification.REFERENCES, "onnx", wrong("w2"))
    assert verify(BATCH, references=("onnx",), tolerance=10.0).passed


def test_a_reference_that_fails_is_reported(verify, monkeypatch) -> None:
    def run(model: ReferenceModel) -> dict[str, np.ndarray]:
        raise LookupError("no such kernel\nat all")

    monkeypatch.setitem(onnx_verification.REFERENCES, "onnxruntime", run)
    result = verify(BATCH)
    assert result.passed
    assert result.not_run == {"onnxruntime": "failed with LookupError: no such kernel"}
    monkeypatch.setitem(onnx_verification.REFERENCES, "onnx", run)
    with pytest.raises(PermanentError, match="no reference could run the model"):
        verify(BATCH)


def test_a_reference_that_is_not_installed(verify, monkeypatch) -> None:
    monkeypatch.setattr(onnx_verification, "_is_installed", lambda name: name == "onnx")
    result = verify(BATCH)
    assert result.passed
    assert result.not_run == {"onnxruntime": "is not installed (`pip install onnxruntime`)"}
    with pytest.raises(PermanentError, match="`onnxruntime` is not installed") as caught:
        verify(BATCH, references=("onnxruntime",))
    assert "pip install" in caught.value.hint
    monkeypatch.setattr(onnx_verification, "_is_installed", lambda name: False)
    with pytest.raises(PermanentError, match="no reference could run"):
        verify(BATCH)


def test_an_unknown_reference(verify) -> None:
    with pytest.raises(InvalidInputError, match="no reference `torch`"):
        verify(BATCH, references=("torch",))


def test_bound_inputs_are_constants_for_the_references_too(verify, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Equal", ["rate", "known"], ["is"], name="is"),
        helper.make_node(
            "If",
            ["is"],
            ["y"],
            name="if",
            then_branch=_branch("Neg"),
            else_branch=_branch("Abs"),
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]),
            helper.make_tensor_value_info("rate", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.array(16000), "known")],
    )
    path = tmp_path / "bound.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[OPSET], ir_version=9), path)
    result = verify(LoadOptions(bind={"rate": 16000}), path)
    assert result.passed
    assert set(result.outputs[0].differences) == {"onnxruntime", "onnx"}


def _branch(operator: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("result", TensorProto.FLOAT, [4])
    return helper.make_graph(
        [helper.make_node(operator, ["x"], ["result"])], operator, [], [output]
    )


def test_a_saved_graph_has_no_reference(verify, model_path: Path) -> None:
    path = model_path.with_suffix(".aegis")
    save_graph(ModelLoader().load(model_path, BATCH), path)
    with pytest.raises(InvalidModelError, match="no other runtime reads"):
        verify(LoadOptions(), path)


def test_weights_in_a_file_of_their_own(verify, model_path: Path) -> None:
    path = model_path.with_name("external.onnx")
    onnx.save(
        onnx.load(model_path), path, save_as_external_data=True, size_threshold=0, location="w.data"
    )
    assert verify(BATCH, path).passed


@pytest.fixture
def choosing_path(tmp_path: Path) -> Path:
    path = tmp_path / "choosing.onnx"
    onnx.save(choosing_model(), path)
    return path


def on_the_threshold() -> dict[str, np.ndarray]:
    scores = np.linspace(-2, 2, BOXES, dtype=np.float32)
    scores[20] = 0
    return {"x": boxes_with_scores(scores)}


def given_more(change: float):
    """Return a reference that finds scores somewhat higher."""

    def run(model: ReferenceModel) -> dict[str, np.ndarray]:
        x = model.inputs["x"].copy()
        x[..., 4] += np.float32(change)
        return onnx_verification._reference_evaluator(
            replace(model, inputs={**model.inputs, "x": x})
        )

    return run


def test_boxes_are_judged_by_what_the_reference_chooses_from_the_same(
    verify, monkeypatch, choosing_path: Path
) -> None:
    monkeypatch.setitem(onnx_verification.REFERENCES, "onnx", given_more(1e-6))
    options = {"references": ("onnx",), "inputs": on_the_threshold()}
    result = verify(LoadOptions(), choosing_path, **options)
    (kept,) = result.outputs
    assert result.passed
    assert kept.differences["onnx"].max_absolute == 0
    assert kept.note.startswith("judged by what onnx would choose from the same `")
    assert {"`boxes`", "`scores`", "`all`"} <= set(
        kept.note.replace(",", " ").replace(":", " ").split()
    )
    assert result.first_difference is None
    # Both references, of which the other one chooses as we do by itself.
    assert verify(LoadOptions(), choosing_path, inputs=on_the_threshold()).passed


def test_scores_that_are_too_far_are_no_excuse(verify, monkeypatch, choosing_path: Path) -> None:
    monkeypatch.setitem(onnx_verification.REFERENCES, "onnx", given_more(0.1))
    result = verify(LoadOptions(), choosing_path, references=("onnx",), inputs=on_the_threshold())
    assert not result.passed
    assert result.outputs[0].note == ""
    assert result.first_difference is not None


def test_another_choice_from_the_same_does_not_pass(
    verify, monkeypatch, choosing_path: Path
) -> None:
    def run(model: ReferenceModel) -> dict[str, np.ndarray]:
        found = onnx_verification._reference_evaluator(model)
        return {name: a[:-1] if name == "kept" else a for name, a in found.items()}

    monkeypatch.setitem(onnx_verification.REFERENCES, "onnx", run)
    result = verify(LoadOptions(), choosing_path, references=("onnx",), inputs=on_the_threshold())
    assert not result.passed
    assert result.outputs[0].differences["onnx"].failure.startswith("expected shape")


def test_boxes_in_half_precision(choosing_path: Path) -> None:
    """The GPU's kernels, run on the host: a score rounds to the threshold, and is not above it."""
    host_device = pytest.importorskip("tests.unit.device.cuda.host_device")
    if host_device.COMPILER is None:
        pytest.skip("no g++")
    inputs = on_the_threshold()
    inputs["x"][0, 20, 4] = 1e-4
    clock, order = SystemClock(), ModelOrder("m", choosing_path, LoadOptions())
    options = VerificationOptions(inputs=inputs, precisions=("fp32", "fp16"))
    with host_device.HostContext(clock) as context:
        stream = context.create_stream(0)
        exact, half = verify_model(order, context, stream, clock, options)
        stream.close()
    assert exact.passed
    assert exact.outputs[0].note == ""
    assert half.passed, half
    assert half.outputs[0].spec.shape[0] == exact.outputs[0].spec.shape[0] - 1
    assert "judged by what onnxruntime and onnx would choose" in half.outputs[0].note
