"""What is folded with NumPy is what ONNX's reference operators say, or is left to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.folding import _FOLDS, fold
from aegis_pipe.execution.graph import OperatorNode
from aegis_pipe.execution.reference_operators import reference_function
from aegis_pipe.tensor import TensorId

FLOATS = np.float32([[1.5, -2.0, 0.0], [3.0, 7.25, -1.0]])
INTS = np.array([[7, -7, 5], [-5, 2, 9]])
OTHERS = np.array([[2, 2, -3], [3, -2, 4]])
BOOLS = np.array([[True, False, True], [False, False, True]])
CUBE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


Case = tuple[str, Sequence[np.ndarray | None], Mapping[str, object]]

CASES: list[Case] = [
    *[(name, (INTS, OTHERS), {}) for name in ("Add", "Sub", "Mul", "Div", "Less", "Greater")],
    *[(name, (FLOATS, FLOATS[:1]), {}) for name in ("Add", "Sub", "Mul", "Div")],
    *[(name, (INTS, OTHERS), {}) for name in ("LessOrEqual", "GreaterOrEqual", "Equal")],
    *[(name, (BOOLS, BOOLS[::-1].copy()), {}) for name in ("And", "Or", "Equal")],
    ("Div", (FLOATS, np.float32([0, 1, 0])), {}),
    ("Div", (np.uint8([200, 7, 9]), np.uint8([3, 2, 9])), {}),
    ("Not", (BOOLS,), {}),
    ("Neg", (INTS,), {}),
    ("Identity", (np.array(3),), {}),
    ("Cast", (FLOATS,), {"to": TensorProto.INT32}),
    ("Cast", (INTS * 100,), {"to": TensorProto.UINT8}),
    ("Cast", (FLOATS * 1e6,), {"to": TensorProto.FLOAT16}),
    ("Cast", (np.float16([0.1, -2, np.nan]),), {"to": TensorProto.FLOAT}),
    ("Cast", (BOOLS,), {"to": TensorProto.INT64}),
    ("Cast", (FLOATS,), {"to": TensorProto.BOOL}),
    ("Cast", (FLOATS,), {"to": TensorProto.BFLOAT16}),
    ("Cast", (FLOATS.astype(ml_dtypes.bfloat16),), {"to": TensorProto.FLOAT}),
    ("Concat", (ints(1, 2), ints(3), ints()), {"axis": 0}),
    ("Concat", (CUBE, CUBE), {"axis": -1}),
    ("ConstantOfShape", (ints(2, 0, 3),), {}),
    ("ConstantOfShape", (ints(2, 3),), {"value": ints(7)}),
    ("ConstantOfShape", (ints(),), {"value": np.array([True])}),
    ("Expand", (FLOATS[:, :1], ints(3, 1, 4)), {}),
    ("Gather", (CUBE, ints(-1, 0)), {"axis": 2}),
    ("Gather", (ints(4, 5, 6), np.array(-2)), {}),
    ("GatherElements", (FLOATS, ints(1, 0, -1, 0).reshape(2, 2)), {"axis": 1}),
    ("GatherElements", (FLOATS, ints(1, -2, 0).reshape(1, 3)), {}),
    ("Reshape", (CUBE, ints(0, -1)), {}),
    ("Reshape", (CUBE[:, :0], ints(0, 4, 2)), {"allowzero": 1}),
    ("Slice", (CUBE, ints(-1, 3), ints(-100, 0), ints(1, -1), ints(-1, -2)), {}),
    ("Slice", (CUBE, ints(1), ints(2**62)), {}),
    ("Slice", (CUBE, ints(0, 1), ints(9, 3), None, ints(1, 2)), {}),
    ("Squeeze", (CUBE[:, :1], ints(1)), {}),
    ("Squeeze", (CUBE[:1, :1],), {}),
    ("Transpose", (CUBE,), {}),
    ("Transpose", (CUBE,), {"perm": (1, 2, 0)}),
    ("Unsqueeze", (np.array(5), ints(0)), {}),
    ("Unsqueeze", (CUBE, ints(-1, 1)), {}),
    ("Where", (BOOLS, INTS, np.array(-1)), {}),
]


def node_of(operator: str, operands: Sequence[np.ndarray | None], **attributes) -> OperatorNode:
    names = tuple(TensorId("" if a is None else f"x{i}") for i, a in enumerate(operands))
    return OperatorNode("n", operator, "", 17, attributes, names, (TensorId("y"),))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_numpy_and_the_reference_agree(case: Case) -> None:
    operator, operands, attributes = case
    node = node_of(operator, operands, **attributes)
    known = {i: array for i, array in enumerate(operands) if array is not None}
    with np.errstate(all="ignore"):
        (expected,) = reference_function(node, (), known)(())
    found = fold(node, operands)
    assert found is not None
    (result,) = found
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    assert result.flags.c_contiguous
    assert result.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_every_operator_has_a_case() -> None:
    assert {operator for operator, _, _ in CASES} == set(_FOLDS)


def test_elements_of_more_than_numpy_chooses_from() -> None:
    """ONNX's reference has a limit there: types of tokens were looked up at every request."""
    data, indices = np.arange(512).reshape(1, 512), np.arange(0, 256, 2).reshape(1, 128)
    (found,) = fold(node_of("GatherElements", (data, indices), axis=1), (data, indices)) or ()
    np.testing.assert_array_equal(found, indices)


def test_elements_along_fewer_rows_than_there_are() -> None:
    """ONNX allows for it, its reference does not."""
    indices = ints(3, 1, 2).reshape(1, 1, 3)
    (found,) = fold(node_of("GatherElements", (CUBE, indices), axis=-1), (CUBE, indices)) or ()
    np.testing.assert_array_equal(found, CUBE[:1, :1, [3, 1, 2]])


def test_operands_that_do_not_fit_are_the_models_fault() -> None:
    with pytest.raises(InvalidModelError, match="inconsistent type"):
        fold(node_of("Add", (INTS, FLOATS)), (INTS, FLOATS))


def test_an_operator_nobody_defines_is_not_folded() -> None:
    node = OperatorNode("n", "Gelu", "com.microsoft", 1, {}, (TensorId("x"),), (TensorId("y"),))
    assert fold(node, [FLOATS]) is None
