"""Cases for the kernels that gather."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.unit.device.cpu.kernels.case import Case, random
from tests.unit.kernel_driver import make_node

_THEIRS = ("float32", "int64", "uint8", "int32", "bool")


def _indices(sizes: Sequence[int], *shape: int, dtype: str = "int64") -> np.ndarray:
    """Return [*shape, len(sizes)] indices, negative ones among them."""
    generator = np.random.default_rng(sum(shape))
    columns = [generator.integers(-size, size, shape) for size in sizes]
    return np.stack(columns, -1).astype(dtype)


def _case(operator: str, data: np.ndarray, indices: np.ndarray, **attributes: object) -> Case:
    kernel = "native.gather_elements" if operator == "GatherElements" else "native.gather"
    return Case(
        kernel,
        make_node(operator, 2, **attributes),
        [data, indices],
        like_onnxruntime=data.dtype.name in _THEIRS,
    )


def cases() -> dict[str, Case]:
    found = {}
    for dtype in ("float32", "int64", "uint8", "float16", "bool"):
        data = (random(6, 7, 5) * 9).astype(dtype)
        for axis in (0, 1, 2):
            chosen = _indices(data.shape[axis : axis + 1], 3, 4)[..., 0]
            found[f"rows {dtype} {axis}"] = _case("Gather", data, chosen, axis=axis)
            narrow = _indices(data.shape[axis : axis + 1], 6, 7, 5, dtype="int32")[..., 0]
            elements = narrow[:4, :6, :3] if axis else narrow[:, :3]
            found[f"elements {dtype} {axis}"] = _case(
                "GatherElements", data, np.ascontiguousarray(elements), axis=axis
            )
            found[f"elements alike {dtype} {axis}"] = _case(
                "GatherElements", data, narrow.astype(np.int64), axis=axis
            )
    for width in (1, 3, 4, 17, 33, 200):
        table = random(50, width)
        for kind in ("int32", "int64"):
            chosen = _indices((50,), 2, 9, dtype=kind)[..., 0]
            found[f"table {width} {kind}"] = _case("Gather", table, chosen)
    found["scalar"] = _case("Gather", random(4, 5), np.array(-1), axis=1)
    found["many"] = _case("Gather", random(3, 90), _indices((90,), 500)[..., 0], axis=1)
    nd = random(3, 4, 5, 6)
    for batch, depth in ((0, 1), (0, 2), (0, 4), (1, 1), (1, 3), (2, 1)):
        sizes = nd.shape[batch : batch + depth]
        tuples = _indices(sizes, *nd.shape[:batch], 7)
        found[f"tuples {batch} {depth}"] = _case("GatherND", nd, tuples, batch_dims=batch)
    sparse = random(2, 3, 2, 3, 2, 3)
    thin = _indices((3,), 2, 3, 2, 3, 2, 3)[..., :1, :, 0]
    found["elements of six dimensions"] = _case(
        "GatherElements", sparse, np.ascontiguousarray(thin[:, :2, :, :2]), axis=3
    )
    return found


INDEXING: dict[str, Case] = {f"gather {name}": case for name, case in cases().items()}
