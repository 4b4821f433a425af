"""ONNX's own test cases, and how one is run through the backend interface."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase as OnnxCase

from aegis_pipe import onnx_backend
from aegis_pipe.errors import AegisError

LIGHT_MODELS = Path(onnx.backend.test.__file__).parent / "data" / "light"


def node_cases() -> list[OnnxCase]:
    """All node cases, built in memory."""
    with warnings.catch_warnings():
        # The generators overflow and divide by zero on purpose.
        warnings.simplefilter("ignore")
        return sorted(collect_testcases(None), key=lambda case: case.name)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Why a case did not pass; `kind` empty if it did."""

    kind: str = ""
    detail: str = ""


def run_case(case: OnnxCase) -> Outcome:
    """Run every data set of a case."""
    try:
        rep = onnx_backend.prepare(case.model)
        for inputs, outputs in case.data_sets:
            results = rep.run(
                [v if isinstance(v, list) or v is None else as_array(v) for v in inputs]
            )
            for result, expected in zip(results, outputs, strict=True):
                compare(result, as_array(expected), case.rtol, case.atol)
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
