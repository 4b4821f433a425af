"""The compiled suppression and the one in NumPy keep the same boxes."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.device.cpu.kernels import native
from aegis_pipe.execution.graph import OperatorNode
from aegis_pipe.tensor import TensorId
from tests.unit.kernel_driver import drive


def kept(values: list[np.ndarray | None], *, compiled: bool, centred: int) -> list[np.ndarray]:
    names = tuple(TensorId("" if v is None else f"x{i}") for i, v in enumerate(values))
    outputs = (TensorId("y"), TensorId("n"))
    attributes = {"center_point_box": centred}
    node = OperatorNode("n", "NonMaxSuppression", "aegis", 1, attributes, names, outputs)
    driven = drive(node, values, (2,), compiled=compiled)
    assert driven is not None
    assert driven.kernel.startswith("native.") == compiled
    return [array for array in driven.outputs if array is not None]


@pytest.mark.skipif(native.LIBRARY is None, reason="no compiled kernels here")
@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("least", [None, 0.5, 2.0])
@pytest.mark.parametrize("most", [0, 3, 1000])
def test_both_keep_the_same_boxes(centred: int, least: float | None, most: int) -> None:
    generator = np.random.default_rng(most)
    boxes = generator.uniform(0, 5, (2, 60, 4)).astype(np.float32)
    # Few distinct scores: equal ones are taken in their order. NaN is never taken.
    scores = (generator.integers(0, 8, (2, 3, 60)) / 7).astype(np.float32)
    scores[0, 0, :2] = np.nan
    limits = [np.array([most], np.int64), np.float32([0.3])]
    values = [boxes, scores, *limits, None if least is None else np.float32([least])]
    found = kept(values, compiled=True, centred=centred)
    for one, other in zip(found, kept(values, compiled=False, centred=centred), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (found[1] > 0) == (most > 0 and least != 2.0)
