"""Features beside each other and look-ups, which work on blocks of elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.learned_scores import BLOCK_ELEMENTS
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelRequest


def _accepts(request: KernelRequest) -> bool:
    specs = [spec for spec in (*request.inputs, *request.outputs) if spec]
    return all(spec.dtype.kind in "fiu" for spec in specs)


def _refused(request: KernelRequest, message: str) -> KernelError:
    return KernelError(
        message,
        context=f"node `{request.node}` ({request.operator})",
        hint="give the data that the model was fitted for",
    )


def _bind_vectorizer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    result = operands.required(outputs)
    copies = []
    column = 0
    for position in range(len(inputs)):
        part = operands.required(inputs, position)
        part = part.reshape(1, -1) if part.ndim == 1 else part
        copies.append((result[:, column : column + part.shape[1]], part))
        column += part.shape[1]

    def run() -> None:
        for target, part in copies:
            np.copyto(target, part, casting="unsafe")

    return run


def _look_up(keys: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (place in ascending keys, whether it is there) of each element."""
    place = np.minimum(np.searchsorted(keys, data), len(keys) - 1)
    found = keys[place]
    return place, (found == data) | ((found != found) & (data != data))


def _accepts_categories(request: KernelRequest) -> bool:
    return _accepts(request) and len(operands.array(request, "categories")) > 0


def _bind_one_hot(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data = operands.required(inputs).reshape(-1)
    categories = operands.array(request, "categories")
    result = operands.required(outputs).reshape(-1, len(categories))
    lists_all = operands.integer(request, "zeros") == 0
    order = np.argsort(categories, kind="stable")
    keys = categories[order]

    def run() -> None:
        result.fill(0)
        for first in range(0, len(data), BLOCK_ELEMENTS):
            block = data[first : first + BLOCK_ELEMENTS].astype(np.int64)
            place, is_known = _look_up(keys, block)
            if lists_all and not is_known.all():
                raise _refused(request, f"{block[~is_known][0]} is none of the categories")
            rows = np.flatnonzero(is_known)
            result[first + rows, order[place[rows]]] = 1

    return run


def _accepts_labels(request: KernelRequest) -> bool:
    return _accepts(request) and len(request.attributes) > 0


def _bind_labels(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data = operands.required(inputs).reshape(-1)
    result = operands.required(outputs).reshape(-1)
    keys, values, default = (
        operands.array(request, name) for name in ("keys", "values", "default")
    )
    parts = [
        (data[first : first + BLOCK_ELEMENTS], result[first : first + BLOCK_ELEMENTS])
        for first in range(0, len(data), BLOCK_ELEMENTS)
    ]

    def run() -> None:
        for part, target in parts:
            place, is_known = _look_up(keys, part)
            np.take(values, place, out=target, mode="clip")
            np.copyto(target, default, where=~is_known)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "feature_vectorizer", ("ai.onnx.ml.FeatureVectorizer",), _bind_vectorizer, accepts=_accepts
    ),
    planned_kernel(
        "one_hot_encoder", ("ai.onnx.ml.OneHotEncoder",), _bind_one_hot, accepts=_accepts_categories
    ),
    planned_kernel(
        "label_encoder", ("ai.onnx.ml.LabelEncoder",), _bind_labels, accepts=_accepts_labels
    ),
)
