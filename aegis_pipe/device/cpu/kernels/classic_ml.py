"""Feature preparation of ai.onnx.ml: scaling, normalising, thresholds, missing values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.pointwise import (
    BOOL,
    INTEGERS,
    WIDE_FLOATS,
    Pointwise,
    as_mask,
    pointwise_kernel,
)
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.scratch import kernel_with_scratch
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec


def _array(request: KernelRequest, name: str) -> np.ndarray:
    value = request.attributes[name]
    assert isinstance(value, np.ndarray), name
    return value


def _accepts(request: KernelRequest) -> bool:
    return operands.input_spec(request, 0).dtype in WIDE_FLOATS | INTEGERS


def _bind_scaler(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    offset, scale = _array(request, "offset"), _array(request, "scale")

    def run() -> None:
        np.copyto(result, data, casting="unsafe")
        np.subtract(result, offset, out=result)
        np.multiply(result, scale, out=result)

    return run


def _normalizer_scratch(request: KernelRequest) -> list[TensorSpec]:
    """Return specs: absolute or squared elements, a norm and a test for zero of each row."""
    result = operands.output_spec(request)
    rows = (*result.shape[:-1], 1)
    return [result, TensorSpec(result.dtype, rows), TensorSpec(BOOL, rows)]


def _bind_normalizer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    kind = operands.text(request, "norm")
    sizes, norms, is_zero = scratch

    def run() -> None:
        np.copyto(result, data, casting="unsafe")
        if kind == "MAX":
            np.maximum.reduce(result, axis=-1, keepdims=True, out=norms)
        else:
            (np.square if kind == "L2" else np.absolute)(result, out=sizes)
            np.add.reduce(sizes, axis=-1, keepdims=True, out=norms)
        if kind == "L2":
            np.sqrt(norms, out=norms)
        # A row of zeros stays one.
        np.copyto(norms, 1, where=np.equal(norms, 0, out=is_zero))
        np.divide(result, norms, out=result)

    return run


def _accepts_rows(request: KernelRequest) -> bool:
    spec = operands.input_spec(request, 0)
    return _accepts(request) and len(spec.shape) > 0 and spec.shape[-1] > 0


def _define_binarizer(request: KernelRequest) -> Pointwise | None:
    threshold = operands.number(request, "threshold")

    def binarise(x: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        np.copyto(out, np.greater(x, threshold, out=as_mask(scratch)))

    return Pointwise(binarise, scratch=1) if _accepts(request) else None


def _imputer_scratch(request: KernelRequest) -> list[TensorSpec]:
    return [TensorSpec(BOOL, operands.output_spec(request).shape)]


def _bind_imputer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    replaced, imputed = operands.number(request, "replaced"), _array(request, "imputed")
    (is_missing,) = scratch

    def run() -> None:
        if math.isnan(replaced):
            np.isnan(data, out=is_missing)
        else:
            np.equal(data, replaced, out=is_missing)
        np.copyto(result, data)
        np.copyto(result, imputed, where=is_missing)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    kernel_with_scratch("ai.onnx.ml.Scaler", _bind_scaler, accepts=_accepts),
    kernel_with_scratch(
        "ai.onnx.ml.Normalizer",
        _bind_normalizer,
        accepts=_accepts_rows,
        scratch=_normalizer_scratch,
    ),
    kernel_with_scratch(
        "ai.onnx.ml.Imputer",
        _bind_imputer,
        accepts=_accepts,
        scratch=_imputer_scratch,
        in_place=((0, 0),),
    ),
    pointwise_kernel("ai.onnx.ml.Binarizer", _define_binarizer),
)
