"""Matrix products by cuBLASLt, addressed by numbers: what is planned at load and enqueued later.

A `MatrixProduct` says what is to be computed. `MatrixProductPlan` holds cuBLASLt's descriptors for
it, lists the algorithms that give the same bits every time, and enqueues one of them; enqueueing
works inside stream capture, and takes about 0.1 ms of Python, so that it belongs there only.

cuBLASLt is column-major. A row-major Y[m, n] is a column-major Y'[n, m], so the plan computes
Y' = W' X' with W first; a bias along n is then along the rows, as cuBLASLt's epilogues want it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Final

import numpy as np

from aegis_pipe.device.cuda.lean_import import import_alone

DATA_TYPES: Final = {"float32": 0, "float16": 2, "bfloat16": 14, "int8": 3, "int32": 10}
"""cudaDataType_t by dtype name."""

_COMPUTE_32F: Final = 68
_COMPUTE_32F_PEDANTIC: Final = 69
_COMPUTE_32F_FAST_TF32: Final = 77
_COMPUTE_32I: Final = 72
"""cublasComputeType_t."""

_TRANSPOSED: Final = 1
"""cublasOperation_t; 0 is as it stands."""

# Epilogues by (activation, whether there is a bias). GELU is the tanh form.
_EPILOGUES: Final = {
    ("", False): "DEFAULT",
    ("", True): "BIAS",
    ("relu", False): "RELU",
    ("relu", True): "RELU_BIAS",
    ("gelu_tanh", False): "GELU",
    ("gelu_tanh", True): "GELU_BIAS",
}

# Split-K that adds up with atomics (INPLACE) gives other bits every time: not in the mask.
_DETERMINISTIC_REDUCTIONS: Final = 2 | 4

CANDIDATES_MAX: Final = 24
ALIGNMENT_BYTES: Final = 16
"""Assumed of every operand's address when algorithms are looked for."""


def load_library() -> ModuleType:
    """Import the binding; ImportError if the `cuda` extra is missing.

    Its package would import the bindings of all other libraries and load those libraries, too.
    """
    return import_alone("nvmath.bindings.cublasLt")


@dataclass(frozen=True, slots=True)
class MatrixProduct:
    """Y[batch, m, n] = activation(X[batch, m, k] @ W[batch, k, n] + bias[n] + residual).

    All row-major and dense; sizes and strides are in elements.
    """

    m: int
    n: int
    k: int
    dtype: str
    """Of X and W: float32, float16, bfloat16, or int8 with an int32 result."""
    batch: int = 1
    x_batch_stride: int = 0
    w_batch_stride: int = 0
    y_batch_stride: int = 0
    x_transposed: bool = False
    """X is stored [k, m]."""
    w_transposed: bool = False
    """W is stored [n, k]."""
    bias: bool = False
    activation: str = ""
    """Empty, `relu` or `gelu_tanh`."""
    residual: bool = False
    """Another [batch, m, n] of Y's dtype is added, before the activation."""
    alpha: float = 1.0
    tf32: bool = False
    """Round float32 operands to ten bits of mantissa, as tensor cores take them."""

    @property
    def result_dtype(self) -> str:
        """Of Y and of the residual."""
        return "int32" if self.dtype == "int8" else self.dtype

    @property
    def has_epilogue(self) -> bool:
        """Return whether bias and activation together are something cuBLASLt fuses."""
        return (self.activation, self.bias) in _EPILOGUES

    @property
    def compute_type(self) -> int:
        """Return cublasComputeType_t; sums are in float32, or int32."""
        if self.dtype == "int8":
            return _COMPUTE_32I
        if self.dtype != "float32":
            return _COMPUTE_32F
        return _COMPUTE_32F_FAST_TF32 if self.tf32 else _COMPUTE_32F_PEDANTIC


@dataclass(frozen=True, slots=True)
class MatrixProductAlgorithm:
    """One way to compute a product; valid for this version of cuBLASLt and this model of GPU."""

    content: bytes
    """cublasLtMatmulAlgo_t, opaque."""
    workspace_bytes: int


class CublasLt:
    """The library's handle for the current device; one serves all streams."""

    def __init__(self) -> None:
        self.library = load_library()
        self._handle = self.library.create()

    @property
    def handle(self) -> int:
        """For this folder's calls only."""
        assert self._handle, "closed"
        return int(self._handle)

    @property
    def version(self) -> int:
        """130100 for 13.1.0."""
        return int(self.library.get_version())

    def close(self) -> None:
        """Release; idempotent."""
        handle, self._handle = self._handle, 0
        if handle:
            self.library.destroy(handle)


class MatrixProductPlan:
    """cuBLASLt's descriptors of one product. `close` it after the last capture."""

    def __init__(self, cublaslt: CublasLt, product: MatrixProduct) -> None:
        assert product.has_epilogue, "cuBLASLt has no such epilogue"
        self.product = product
        self._cublaslt = cublaslt
        self._library = cublaslt.library
        self._layouts: list[int] = []
        # Integer results are scaled by an integer.
        scale = np.int32 if product.dtype == "int8" else np.float32
        self._alpha = np.array(product.alpha, scale)
        self._beta = np.array(1 if product.residual else 0, scale)
        scale_type = DATA_TYPES["int32" if product.dtype == "int8" else "float32"]
        self._description = self._library.matmul_desc_create(product.compute_type, scale_type)
        attributes = self._library.MatmulDescAttribute
        self._describe(attributes.TRANSA, np.int32(_TRANSPOSED * product.w_transposed))
        self._describe(attributes.TRANSB, np.int32(_TRANSPOSED * product.x_transposed))
        epilogue = _EPILOGUES[product.activation, product.bias]
        self._describe(attributes.EPILOGUE, np.int32(self._library.Epilogue[epilogue]))
        if product.bias:
            self._describe(attributes.BIAS_DATA_TYPE, np.int32(DATA_TYPES[product.result_dtype]))
        p = product
        self._w = self._layout(p.dtype, p.n, p.k, p.w_transposed, p.w_batch_stride)
        self._x = self._layout(p.dtype, p.k, p.m, p.x_transposed, p.x_batch_stride)
        self._y = self._layout(p.result_dtype, p.n, p.m, False, p.y_batch_stride)

    def algorithms(self, workspace_max_bytes: int) -> Iterator[MatrixProductAlgorithm]:
        """Yield deterministic algorithms, what the library thinks best first."""
        library = self._library
        results = np.zeros(CANDIDATES_MAX, library.matmul_heuristic_result_dtype)
        count = np.zeros(1, np.int32)
        preference = library.matmul_preference_create()
        try:
            kinds = library.MatmulPreferenceAttribute
            settings: dict[int, np.generic] = {
                kinds.MAX_WORKSPACE_BYTES: np.uint64(workspace_max_bytes),
                kinds.REDUCTION_SCHEME_MASK: np.uint32(_DETERMINISTIC_REDUCTIONS),
            }
            for operand in "ABCD":
                kind = kinds[f"MIN_ALIGNMENT_{operand}_BYTES"]
                settings[kind] = np.uint32(ALIGNMENT_BYTES)
            for kind, value in settings.items():
                _set(library.matmul_preference_set_attribute, preference, kind, value)
            library.matmul_algo_get_heuristic(
                *(self._cublaslt.handle, self._description),
                *(self._w, self._x, self._y, self._y, preference),
                *(CANDIDATES_MAX, results.ctypes.data, count.ctypes.data),
            )
        finally:
            library.matmul_preference_destroy(preference)
        for found in results[: int(count[0])]:
            if found["state"] == 0:
                algorithm = found["algo"].tobytes()
                yield MatrixProductAlgorithm(algorithm, int(found["workspace_size"]))

    def enqueue(
        self,
        algorithm: MatrixProductAlgorithm,
        stream: int,
        *,
        x: int,
        w: int,
        y: int,
        bias: int = 0,
        residual: int = 0,
        workspace: int = 0,
    ) -> None:
        """Enqueue the product on a stream; operands are device addresses.

        Raises cuBLASLtError if the algorithm does not take them.
        """
        if self.product.bias:
            self._describe(self._library.MatmulDescAttribute.BIAS_POINTER, np.uint64(bias))
        content = ctypes.create_string_buffer(algorithm.content, len(algorithm.content))
        self._library.matmul(
            *(self._cublaslt.handle, self._description),
            *(self._alpha.ctypes.data, w, self._w, x, self._x),
            *(self._beta.ctypes.data, residual or y, self._y, y, self._y),
            *(ctypes.addressof(content), workspace, algorithm.workspace_bytes, stream),
        )

    def close(self) -> None:
        """Release; idempotent."""
        while self._layouts:
            self._library.matrix_layout_destroy(self._layouts.pop())
        description, self._description = self._description, 0
        if description:
            self._library.matmul_desc_destroy(description)

    def _describe(self, attribute: int, value: np.generic) -> None:
        _set(self._library.matmul_desc_set_attribute, self._description, attribute, value)

    def _layout(
        self, dtype: str, rows: int, columns: int, transposed: bool, batch_stride: int
    ) -> int:
        """Describe a matrix of so many rows and columns after `transposed` is applied."""
        if transposed:
            rows, columns = columns, rows
        layout = self._library.matrix_layout_create(DATA_TYPES[dtype], rows, columns, rows)
        self._layouts.append(layout)
        if self.product.batch > 1:
            attributes = self._library.MatrixLayoutAttribute
            setter = self._library.matrix_layout_set_attribute
            _set(setter, layout, attributes.BATCH_COUNT, np.int32(self.product.batch))
            _set(setter, layout, attributes.STRIDED_BATCH_OFFSET, np.int64(batch_stride))
        return int(layout)


def _set(
    setter: Callable[[int, int, int, int], None], target: int, attribute: int, value: np.generic
) -> None:
    held = np.array(value)
    setter(target, attribute, held.ctypes.data, held.nbytes)
