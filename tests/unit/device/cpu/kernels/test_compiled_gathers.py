"""What the compiled gathers do with indices that are outside, and with wide elements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from aegis_pipe.device.cpu.kernels import KERNELS, native
from aegis_pipe.errors import KernelError
from tests.unit.device.cpu.kernels.case import random
from tests.unit.kernel_driver import drive, lower, make_node, operator_node

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason=f"compiled kernels {native.STATUS}")

TABLE = random(3, 4)


def _bind(data: np.ndarray, indices: np.ndarray) -> tuple[native.NativeCall, np.ndarray]:
    """Bind a Gather to these arrays, which are data; return its result too."""
    request, _ = lower(operator_node(make_node("Gather", 2), 22), [data, indices])
    kernel = KERNELS.candidates("Gather")[0]
    choice = kernel.choose(request)
    spec = request.outputs[0]
    assert choice is not None
    assert spec is not None
    result = np.full(spec.shape, 9, spec.dtype)
    call = kernel.bind(request, choice, [data, indices], [result], None)
    assert isinstance(call, native.NativeCall)
    return call, result


@pytest.mark.parametrize("constants", [(), (1,)], ids=["data", "constant"])
@pytest.mark.parametrize(
    ("operator", "indices", "attributes", "message"),
    [
        ("Gather", np.array([0, 3]), {}, "index 3 is outside of a dimension of size 3"),
        ("Gather", np.array([-5], np.int32), {"axis": 1}, "index -5 .* of size 4"),
        ("Gather", np.array([7, -9, 5, -4]), {}, "index -9 .* of size 3"),
        ("Gather", np.array([5, 7, 1]), {}, "index 7 .* of size 3"),
        ("GatherElements", np.array([[4]]), {"axis": 1}, "index 4 .* of size 4"),
        ("GatherND", np.array([[0, 7], [1, 1]]), {}, "index 7 .* of size 4"),
        ("GatherND", np.array([[2**40, 7], [1, 1]]), {}, "index 1099511627776 .* of size 3"),
    ],
)
def test_indices_are_checked(
    operator: str,
    indices: np.ndarray,
    attributes: dict[str, object],
    message: str,
    constants: tuple[int, ...],
) -> None:
    node = operator_node(make_node(operator, 2, **attributes), 22)
    with pytest.raises(KernelError, match=message) as caught:
        drive(node, [TABLE, indices], constants, compiled=True)
    assert "node `node`" in str(caught.value)


@pytest.mark.parametrize("runs", [lambda batch: batch(), lambda batch: batch.run_stamped(0)])
def test_a_refused_run_leaves_nothing_behind(runs: Callable[[native.NativeBatch], None]) -> None:
    """The first refusal is raised, the others are forgotten, and good indices work again."""
    assert native.LIBRARY is not None
    indices = np.array([1, 5, 2])
    first, result = _bind(TABLE, indices)
    second, _ = _bind(TABLE[:2], indices)
    batch = native.NativeBatch(native.LIBRARY, [first, None, second])
    with pytest.raises(KernelError, match="index 5 is outside of a dimension of size 3"):
        runs(batch)
    np.testing.assert_array_equal(result, [TABLE[1], np.zeros(4), TABLE[2]])
    indices[:] = [1, 0, -2]
    runs(batch)
    np.testing.assert_array_equal(result, TABLE[[1, 0, 1]])


@pytest.mark.parametrize("operator", ["Gather", "GatherElements"])
def test_elements_of_sixteen_bytes(operator: str) -> None:
    data = random(5, 6) + 1j * random(5, 6)
    data = data.astype(np.complex128)
    indices = np.array([[4, 0, -1], [2, 1, 1]])
    driven = drive(operator_node(make_node(operator, 2), 22), [data, indices], compiled=True)
    assert driven is not None
    taken = data[indices] if operator == "Gather" else data[indices, [0, 1, 2]]
    np.testing.assert_array_equal(driven.outputs[0], taken)
