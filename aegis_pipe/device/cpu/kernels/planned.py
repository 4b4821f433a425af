"""How a kernel with scratch is written: name its scratch arrays, get them bound.

`planned_kernel` turns four plain functions into a `CpuKernel`: the workspace's size follows from
the scratch arrays' specs, and at bind the same specs carve the workspace up. Half-precision
requests run in float32: operands are widened into scratch (constants when they are packed),
results narrowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import ml_dtypes
import numpy as np

from aegis_pipe.device import requests
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant
from aegis_pipe.tensor import TensorSpec

ALIGNMENT_BYTES = 64
"""Scratch arrays start at multiples of a cache line."""

FLOAT32 = np.dtype(np.float32)
FLOAT16 = np.dtype(np.float16)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_HALF_FLOATS = (FLOAT16, _BFLOAT16)
_FLOATS = (FLOAT32, np.dtype(np.float64))


class BindPlanned(Protocol):
    """Fixes a kernel to its operands and its scratch arrays."""

    def __call__(
        self,
        request: KernelRequest,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        scratch: Sequence[np.ndarray],
    ) -> Callable[[], None]:
        """Return the call; `scratch[i]` has the i-th spec's dtype and shape, content undefined."""
        ...


def no_scratch(_request: KernelRequest) -> Sequence[TensorSpec]:
    """Say that a kernel needs no scratch."""
    return ()


def no_packing(_request: KernelRequest) -> Mapping[int, PackedConstant]:
    """Say that a kernel takes all constants as they are."""
    return {}


def all_float(request: KernelRequest) -> bool:
    """Accept requests whose operands and first result are all float32, or all float64."""
    specs = [spec for spec in (*request.inputs, request.outputs[0]) if spec is not None]
    return specs[0].dtype in _FLOATS and len({spec.dtype for spec in specs}) == 1


def elements_moved(request: KernelRequest) -> float:
    """Estimate the cost of a kernel that is bound by memory."""
    return float(sum(spec.element_count for spec in (*request.inputs, *request.outputs) if spec))


def planned_kernel(
    name: str,
    operators: tuple[str, ...],
    bind: BindPlanned,
    *,
    accepts: Callable[[KernelRequest], bool] = all_float,
    scratch: Callable[[KernelRequest], Sequence[TensorSpec]] = no_scratch,
    packed: Callable[[KernelRequest], Mapping[int, PackedConstant]] = no_packing,
    cost: Callable[[KernelRequest], float] = elements_moved,
    in_place: tuple[tuple[int, int], ...] = (),
    widens: tuple[np.dtype, ...] = _HALF_FLOATS,
) -> CpuKernel:
    """Return the kernel; requests in the dtypes it `widens` run through float32 scratch.

    `in_place` pairs are offered where their specs are the same.
    """

    def choose(request: KernelRequest) -> KernelChoice | None:
        if not _half_dtypes(request) <= set(widens):
            return None
        if _half_dtypes(request):
            wide = choose(_widened(request))
            return wide and _narrow_choice(request, wide)
        if not accepts(request):
            return None
        return KernelChoice(
            kernel=name,
            workspace_bytes=scratch_bytes(scratch(request)),
            packed=packed(request),
            cost=cost(request),
            in_place=requests.in_place(request, in_place),
        )

    def bind_to_workspace(
        request: KernelRequest,
        choice: KernelChoice,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        workspace: np.ndarray | None,
    ) -> Callable[[], None]:
        if _half_dtypes(request):
            return _bind_half(bind_to_workspace, request, choice, inputs, outputs, workspace)
        return bind(request, inputs, outputs, carve(workspace, scratch(request)))

    return CpuKernel(operators, choose, bind_to_workspace)


def scratch_bytes(specs: Iterable[TensorSpec]) -> int:
    """Return the bytes of these arrays, each aligned."""
    return sum(_aligned(spec.size_bytes) for spec in specs)


def carve(workspace: np.ndarray | None, specs: Iterable[TensorSpec]) -> list[np.ndarray]:
    """Return arrays of these specs, one after the other in the workspace."""
    arrays = []
    offset = 0
    for spec in specs:
        if workspace is None or spec.size_bytes == 0:
            arrays.append(np.empty(spec.shape, spec.dtype))
            continue
        raw = workspace[offset : offset + spec.size_bytes]
        arrays.append(raw.view(spec.dtype).reshape(spec.shape))
        offset += _aligned(spec.size_bytes)
    return arrays


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _half(spec: TensorSpec | None) -> bool:
    return spec is not None and spec.dtype in _HALF_FLOATS


def _half_dtypes(request: KernelRequest) -> set[np.dtype]:
    specs = (*request.inputs, *request.outputs)
    return {spec.dtype for spec in specs if spec is not None and _half(spec)}


def _wide(spec: TensorSpec | None) -> TensorSpec | None:
    return TensorSpec(FLOAT32, spec.shape) if spec and _half(spec) else spec


def _widened(request: KernelRequest) -> KernelRequest:
    """Return the request with every half-precision operand as float32."""
    constants = {
        position: value.astype(np.float32) if value.dtype in _HALF_FLOATS else value
        for position, value in request.constants.items()
    }
    return replace(
        request,
        inputs=tuple(map(_wide, request.inputs)),
        outputs=tuple(map(_wide, request.outputs)),
        constants=constants,
    )


def _narrow_choice(request: KernelRequest, wide: KernelChoice) -> KernelChoice:
    packed = {
        position: _packed_wide(spec, wide.packed.get(position))
        for position, spec in enumerate(request.inputs)
        if spec is not None and _half(spec) and position in request.constants
    }
    converted = scratch_bytes(_conversions(request))
    return replace(
        wide,
        workspace_bytes=wide.workspace_bytes + converted,
        packed={**wide.packed, **packed},
        in_place=(),
    )


def _packed_wide(spec: TensorSpec, inner: PackedConstant | None) -> PackedConstant:
    """Widen a constant at load, then pack it as the float32 kernel wants it."""
    if inner is None:
        size_bytes = spec.element_count * FLOAT32.itemsize
        return PackedConstant(
            "float32", size_bytes, lambda value: as_bytes(value.astype(np.float32))
        )
    pack = inner.pack
    return PackedConstant(
        f"float32/{inner.layout}", inner.size_bytes, lambda value: pack(value.astype(np.float32))
    )


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Return an array's bytes as uint8[size_bytes], copied if they are not in order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def packed_centred(
    request: KernelRequest,
    position: int,
    zero: np.ndarray | None,
    dtype: np.dtype,
    centred: Callable[[np.ndarray], np.ndarray],
    *,
    order: str = "",
) -> Mapping[int, PackedConstant]:
    """Return how the integers of a constant become those less their zero point, of `dtype`.

    `order` names how `centred` turns them.
    """
    spec = request.inputs[position]
    assert spec is not None, f"{request.operator} without operand {position}"
    layout = f"centred-{dtype.name}{order}-{'' if zero is None else zero.tobytes().hex()}"

    def pack(array: np.ndarray) -> np.ndarray:
        return as_bytes(centred(array).astype(dtype))

    return {position: PackedConstant(layout, spec.element_count * dtype.itemsize, pack)}


def _conversions(request: KernelRequest) -> list[TensorSpec]:
    """Return the float32 scratch arrays: half operands that vary, then half results."""
    varying = [
        spec for i, spec in enumerate(request.inputs) if _half(spec) and i not in request.constants
    ]
    results = [spec for spec in request.outputs if _half(spec)]
    return [wide for spec in (*varying, *results) if (wide := _wide(spec))]


def _bind_half(
    bind: Callable[..., Callable[[], None]],
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    specs = _conversions(request)
    arrays = iter(carve(workspace, specs))
    wide_request = _widened(request)
    widen: list[tuple[np.ndarray, np.ndarray]] = []
    wide_inputs: list[np.ndarray | None] = []
    for position, (spec, array) in enumerate(zip(request.inputs, inputs, strict=True)):
        wide = array
        if array is not None and spec is not None and _half(spec):
            if position in request.constants:
                wide = _unpacked(array, spec, choice.packed[position])
            else:
                wide = next(arrays)
                widen.append((wide, array))
        wide_inputs.append(wide)
    narrow: list[tuple[np.ndarray, np.ndarray]] = []
    wide_outputs: list[np.ndarray | None] = []
    for spec, array in zip(request.outputs, outputs, strict=True):
        wide = array
        if array is not None and _half(spec):
            wide = next(arrays)
            narrow.append((array, wide))
        wide_outputs.append(wide)
    rest = workspace[scratch_bytes(specs) :] if workspace is not None else None
    call = bind(wide_request, choice, wide_inputs, wide_outputs, rest)

    def run() -> None:
        for target, source in widen:
            np.copyto(target, source)
        call()
        for target, source in narrow:
            np.copyto(target, source, casting="unsafe")

    return run


def _unpacked(array: np.ndarray, spec: TensorSpec, packed: PackedConstant) -> np.ndarray:
    return array.view(np.float32).reshape(spec.shape) if packed.layout == "float32" else array
