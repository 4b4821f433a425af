from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import pytest

from aegis_pipe.device.cpu.kernels.planned import (
    ALIGNMENT_BYTES,
    carve,
    planned_kernel,
    scratch_bytes,
)
from aegis_pipe.kernel import KernelRequest, PackedConstant
from aegis_pipe.tensor import TensorSpec

FLOAT32 = np.dtype(np.float32)


def _spec(*shape: int, dtype: object = np.float32) -> TensorSpec:
    return TensorSpec(np.dtype(dtype), shape)


def test_carved_arrays_are_aligned_and_disjoint() -> None:
    specs = [_spec(3), _spec(5, 7), _spec(0), _spec(2, dtype=np.bool_), _spec(dtype=np.int64)]
    workspace = np.zeros(scratch_bytes(specs), np.uint8)
    arrays = carve(workspace, specs)
    starts = [array.ctypes.data - workspace.ctypes.data for array in arrays if array.size]
    assert [start % ALIGNMENT_BYTES for start in starts] == [0] * 4
    for value, array in enumerate(arrays):
        array.fill(value)
    assert [array.tobytes() for array in arrays] == [
        np.full(spec.shape, value, spec.dtype).tobytes() for value, spec in enumerate(specs)
    ]


def _adding_kernel(**options: object) -> object:
    """Return a kernel that adds its operands; the second as its pack left it."""

    def bind(
        request: KernelRequest,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
        scratch: Sequence[np.ndarray],
    ) -> Callable[[], None]:
        def run() -> None:
            np.add(inputs[0], inputs[1].view(inputs[0].dtype).reshape(-1), out=outputs[0])

        return run

    return planned_kernel("add", ("Add",), bind, **options)


def _request(dtype: object, constants: dict[int, np.ndarray]) -> KernelRequest:
    spec = _spec(3, dtype=dtype)
    return KernelRequest("Add", "node", {}, (spec, spec), (spec,), constants)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("is_constant", [False, True])
@pytest.mark.parametrize("packs", [False, True])
def test_half_precision_is_widened(dtype: object, is_constant: bool, packs: bool) -> None:
    doubled = PackedConstant("doubled", 12, lambda value: (value * 2).view(np.uint8))
    options = {"packed": lambda request: {1: doubled}} if packs and is_constant else {}
    kernel = _adding_kernel(**options)
    first = np.array([1.5, -2, 3], dtype)
    second = np.array([0.25, 4, 6], dtype)
    request = _request(dtype, {1: second} if is_constant else {})
    choice = kernel.choose(request)
    assert choice is not None
    assert sorted(choice.packed) == [1] * is_constant
    given = choice.packed[1].pack(second) if is_constant else second
    result = np.empty(3, dtype)
    workspace = np.empty(choice.workspace_bytes, np.uint8)
    kernel.bind(request, choice, [first, given], [result], workspace)()
    factor = 2 if packs and is_constant else 1
    np.testing.assert_array_equal(
        result.astype(float), [1.5 + 0.25 * factor, 2 + 4 * (factor - 1), 3 + 6 * factor]
    )


def test_a_kernel_may_decline_to_widen() -> None:
    kernel = _adding_kernel(widens=(np.dtype(np.float16),))
    assert kernel.choose(_request(np.float16, {})) is not None
    assert kernel.choose(_request(ml_dtypes.bfloat16, {})) is None
    assert kernel.choose(_request(np.int32, {})) is None
