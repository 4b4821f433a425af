"""Preparation of features for classical models; look-ups work on blocks of elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.learned_scores import BLOCK_ELEMENTS
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_FLOAT64 = np.dtype(np.float64)


def _accepts(request: KernelRequest) -> bool:
    specs = [spec for spec in (*request.inputs, *request.outputs) if spec]
    return all(spec.dtype.kind in "fiu" for spec in specs)


def _wide_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    return (TensorSpec(_FLOAT64, operands.input_spec(request, 0).shape),)


def _bind_scaler(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    offset, scale = operands.array(request, "offset"), operands.array(request, "scale")
    wide = scratch[0]

    def run() -> None:
        np.subtract(data, offset, out=wide)
        np.multiply(wide, scale, out=wide)
        np.copyto(result, wide, casting="unsafe")

    return run


def _normalizer_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    shape = operands.input_spec(request, 0).shape
    return (TensorSpec(_FLOAT64, shape), TensorSpec(_FLOAT64, (*shape[:-1], 1)))


def _bind_normalizer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    norm = operands.text(request, "norm")
    wide, divisor = scratch

    def run() -> None:
        if norm == "MAX":
            np.maximum.reduce(data, axis=-1, keepdims=True, out=divisor)
        elif norm == "L1":
            np.abs(data, out=wide)
            np.add.reduce(wide, axis=-1, keepdims=True, out=divisor)
        else:
            np.multiply(data, data, out=wide, dtype=_FLOAT64)
            np.add.reduce(wide, axis=-1, keepdims=True, out=divisor)
            np.sqrt(divisor, out=divisor)
        # A row whose norm is 0 stays as it is.
        np.copyto(divisor, 1, where=divisor == 0)
        np.divide(data, divisor, out=wide)
        np.copyto(result, wide, casting="unsafe")

    return run


def _bind_binarizer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    threshold = operands.number(request, "threshold")

    def run() -> None:
        np.greater(data, threshold, out=result, casting="unsafe")

    return run


def _flags(request: KernelRequest) -> Sequence[TensorSpec]:
    return (TensorSpec(np.dtype(np.bool_), operands.input_spec(request, 0).shape),)


def _bind_imputer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    # `replaced` is that of the data's dtype: 0.1 in float32 data means the float32 next to 0.1.
    replaced = np.array(request.attributes["replaced"], data.dtype)
    imputed = operands.array(request, "imputed")
    is_missing = scratch[0]

    def run() -> None:
        if replaced == replaced:
            np.equal(data, replaced, out=is_missing)
        else:
            np.isnan(data, out=is_missing)
        np.copyto(result, data)
        np.copyto(result, imputed, where=is_missing)

    return run


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
        "scaler", ("ai.onnx.ml.Scaler",), _bind_scaler, accepts=_accepts, scratch=_wide_scratch
    ),
    planned_kernel(
        "normalizer",
        ("ai.onnx.ml.Normalizer",),
        _bind_normalizer,
        accepts=_accepts,
        scratch=_normalizer_scratch,
    ),
    planned_kernel("binarizer", ("ai.onnx.ml.Binarizer",), _bind_binarizer, accepts=_accepts),
    planned_kernel(
        "imputer", ("ai.onnx.ml.Imputer",), _bind_imputer, accepts=_accepts, scratch=_flags
    ),
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
