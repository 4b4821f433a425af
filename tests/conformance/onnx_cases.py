"""ONNX's own test cases, and how one is run through the backend interface."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from google.protobuf.message import DecodeError
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase as OnnxCase

from aegis_pipe import onnx_backend
from aegis_pipe.errors import AegisError

DATA = Path(onnx.backend.test.__file__).parent / "data"
LIGHT_MODELS = DATA / "light"
MODEL_SUITES = ("simple", "pytorch-converted", "pytorch-operator")


def node_cases() -> list[OnnxCase]:
    """All node cases, built in memory."""
    with warnings.catch_warnings():
        # The generators overflow and divide by zero on purpose.
        warnings.simplefilter("ignore")
        return sorted(collect_testcases(None), key=lambda case: case.name)


def model_cases(suite: str) -> list[OnnxCase]:
    """All cases of a suite that ships as files."""
    return [_model_case(folder) for folder in sorted((DATA / suite).iterdir())]


def _model_case(folder: Path) -> OnnxCase:
    model = onnx.load(folder / "model.onnx")
    data_sets = [
        tuple(
            [_tensor(part / f"{kind}_{index}.pb") for index in range(len(values))]
            for kind, values in (("input", model.graph.input), ("output", model.graph.output))
        )
        for part in sorted(folder.glob("test_data_set_*"))
    ]
    return OnnxCase(
        name=folder.name,
        model_name=folder.name,
        url=None,
        model_dir=str(folder),
        model=model,
        data_sets=data_sets,
        kind="model",
        rtol=1e-3,
        atol=1e-7,
    )


def _tensor(path: Path) -> np.ndarray | list[np.ndarray] | None:
    """Return a value that lies beside a model; None for an initialiser, which has no file."""
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(content))
    except (DecodeError, ValueError, TypeError):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(content))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Why a case did not pass; `kind` empty if it did."""

    kind: str = ""
    detail: str = ""


def run_light_model(name: str, device: str = "CPU") -> Outcome:
    """Run one of the real architectures that ONNX ships with expected outputs."""
    model = onnx.load(LIGHT_MODELS / f"{name}.onnx")
    constant = {tensor.name for tensor in model.graph.initializer}
    (value,) = [value for value in model.graph.input if value.name not in constant]
    shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    # As ONNX's own runner makes the inputs of these models.
    size = int(np.prod(shape))
    image = (np.arange(size).reshape(shape) / size).astype(np.float32)
    expected = _tensor(LIGHT_MODELS / f"{name}_output_0.pb")
    return _outcome(model, [([image], [expected])], 1e-3, 1e-5, device)


def run_case(case: OnnxCase, device: str = "CPU") -> Outcome:
    """Run every data set of a case."""
    return _outcome(case.model, case.data_sets, case.rtol, case.atol, device)


def _outcome(
    model: onnx.ModelProto, data_sets: Any, rtol: float, atol: float, device: str
) -> Outcome:
    try:
        rep = onnx_backend.prepare(model, device)
        for inputs, outputs in data_sets:
            results = rep.run(
                [v if isinstance(v, list) or v is None else as_array(v) for v in inputs]
            )
            for result, expected in zip(results, outputs, strict=True):
                compare(result, as_array(expected), rtol, atol)
            if rep.reference_operators:
                return Outcome("reference kernel", ", ".join(rep.reference_operators))
    except AegisError as error:
        return Outcome(type(error).__name__, str(error).splitlines()[0])
    except AssertionError as error:
        return Outcome("Mismatch", " ".join(str(error).split())[:200])
    return Outcome()


def as_array(value: Any) -> np.ndarray:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def compare(result: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> None:
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    if result.dtype.kind not in "fiubc":
        # Types of `ml_dtypes`; every one fits into float32.
        result, expected = result.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol)
