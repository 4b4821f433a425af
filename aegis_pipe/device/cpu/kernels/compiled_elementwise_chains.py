"""Compiled chains of elementwise operators (`c/chains.c`).

native.chain  every step has a function in `c/elementwise.h`, `c/comparisons.h`, `c/conversions.h`
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import (
    broadcasting,
    compiled_comparisons,
    compiled_conversions,
    compiled_elementwise,
    native,
    operands,
)
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import elements_moved
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.elementwise_chains import (
    CHAIN,
    CONSTANTS_MAX,
    INPUTS_MAX,
    OPERANDS,
    RANK_MAX,
    STEPS_MAX,
    Chain,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest

_TILE = 1024
"""Elements of a tile; a few of them fit into a core's first-level cache."""
_INPUTS = INPUTS_MAX + CONSTANTS_MAX
_REGISTERS = 8
_APART = 128
"""Bytes between registers, which else would all begin at the same place of a page. A row that is
laid out last may reach 60 bytes into them."""

_GELU = "com.microsoft.BiasGelu"
_FLOAT32 = frozenset({"float32"})
_COMPARED = compiled_comparisons.NUMBERS
_LOGIC = ("And", "Or", "Xor")
_CAST = frozenset({"bool", "int64", "int32", "uint8", "int8", "float16", "float32"})
_SELECTED = frozenset({"bool", "int64", "int32", "float32"})

STEPS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys((*compiled_elementwise.MAPS, "Clip", "Pow", _GELU), _FLOAT32),
    **{name: _FLOAT32 for name in compiled_elementwise.PAIRS if name != "PRelu"},
    **{name: _COMPARED | {"bool"} for name in compiled_comparisons.COMPARISONS},
    **dict.fromkeys(_LOGIC, frozenset({"bool"})),
    "Where": _SELECTED,
    "Cast": _CAST,
}
"""Operators that can be steps, and the dtypes of their operands and results.

Only those whose own kernel has the same bits whatever the shapes: short rows of PRelu, and of Gelu
with a bias, are another kernel's.
"""


class _Input(ctypes.Structure):
    """`chain_input` of `c/chains.c`."""

    _fields_ = (
        *(("data", POINTER), ("size", INTEGER), ("strides", INTEGER * RANK_MAX)),
        *(("place", INTEGER), ("is_periodic", INTEGER)),
    )


class _Step(ctypes.Structure):
    """`chain_step` of `c/chains.c`."""

    _fields_ = (
        *(("function", POINTER), ("operands", INTEGER * OPERANDS), ("result", INTEGER)),
        *(("p", FLOAT), ("q", FLOAT)),
    )


class _Chain(ctypes.Structure):
    """`chain` of `c/chains.c`."""

    _fields_ = (
        *(("y", POINTER), ("y_size", INTEGER), ("shape", INTEGER * RANK_MAX)),
        *(("tile", INTEGER), ("rows", INTEGER)),
        *(("workspace", POINTER), ("workspace_bytes", INTEGER)),
        ("registers", INTEGER * _REGISTERS),
        *((name, INTEGER) for name in ("input_count", "register_count", "step_count")),
        *(("inputs", _Input * _INPUTS), ("steps", _Step * STEPS_MAX)),
    )


def _function(step: KernelRequest) -> tuple[str, tuple[float, float]] | None:
    """Return a step's function and its parameters; None if there is none in this form."""
    dtypes = {spec.dtype.name for spec in (*step.inputs, *step.outputs) if spec is not None}
    if not dtypes <= STEPS.get(step.operator, frozenset()):
        return None
    if step.operator == "Cast":
        source, target = operands.input_spec(step, 0).dtype, operands.output_spec(step).dtype
        return None if source == target else (compiled_conversions.function(step), (0.0, 0.0))
    if step.operator == "Where" or step.operator in compiled_comparisons.COMPARISONS:
        return compiled_comparisons.function(step), (0.0, 0.0)
    if step.operator in compiled_elementwise.PAIRS:
        is_pair = len(step.inputs) == 2
        return (compiled_elementwise.pair_function(step), (0.0, 0.0)) if is_pair else None
    return compiled_elementwise.map_function(step)


class _Layout:
    """How a chain walks through its operands, and where in the workspace its tiles lie."""

    def __init__(self, request: KernelRequest, chain: Chain) -> None:
        self.chain = chain
        result = operands.output_spec(request)
        inputs = [operands.input_spec(request, i) for i in range(chain.input_count)]
        shapes = [*(spec.shape for spec in inputs), *(() for _ in chain.constants)]
        walk = broadcasting.walk(result.shape, shapes, RANK_MAX)
        self.is_known = walk is not None
        if walk is None:
            return
        self.shape, *self.strides = walk
        self.sizes = [*(spec.dtype.itemsize for spec in inputs), *(4 for _ in chain.constants)]
        length = self.shape[-1]
        self.rows = 0 if 2 * length > _TILE else _TILE // length
        self.workspace_bytes = 0
        self.registers: list[int] = []
        self.results = self._assign_registers()
        self.places = [self._place(i) for i in range(len(shapes))]

    def _assign_registers(self) -> list[int]:
        """Return each step's register; the last step's is the result's own tile."""
        chain, last = self.chain, self.chain.last_reads()
        widths: list[int] = []
        busy_until: list[int] = []
        assigned = []
        for position, step in enumerate(chain.steps[:-1]):
            # Its own operands' registers are not free yet: widths differ, and loops may run faster
            # if what they write is not what they read.
            free = [r for r, until in enumerate(busy_until) if until < position]
            register = free[0] if free else len(widths)
            if not free:
                widths.append(0)
                busy_until.append(0)
            widths[register] = max(widths[register], step.dtype.itemsize)
            busy_until[register] = last[chain.first_result + position]
            assigned.append(register)
        self.registers = [self._reserve(width) for width in widths]
        return [*assigned, len(widths)]

    def _reserve(self, width: int) -> int:
        start = self.workspace_bytes
        self.workspace_bytes += _TILE * width + _APART
        return start

    def _place(self, value: int) -> int:
        """Return where an operand is laid out, -1 if it can be read where it lies."""
        strides = self.strides[value]
        dense = [math.prod(self.shape[d + 1 :]) for d in range(RANK_MAX)]
        is_dense = all(
            size == 1 or stride == step
            for size, stride, step in zip(self.shape, strides, dense, strict=True)
        )
        return (
            -1
            if not self.rows or is_dense or not any(strides)
            else self._reserve(self.sizes[value])
        )

    def is_periodic(self, value: int) -> bool:
        """Return whether all rows of an operand are the same."""
        return not any(self.strides[value][:-1])


def _choose(request: KernelRequest) -> KernelChoice | None:
    result = operands.output_spec(request)
    if native.LIBRARY is None or not result.element_count:
        return None
    chain = Chain.of(request)
    inputs = [operands.input_spec(request, i) for i in range(chain.input_count)]
    steps = chain.requests(request, inputs, result.shape)
    layout = _Layout(request, chain)
    if not layout.is_known or any(_function(step) is None for step in steps):
        return None
    return KernelChoice(
        kernel="native.chain",
        workspace_bytes=layout.workspace_bytes,
        in_place=tuple((i, 0) for i, spec in enumerate(inputs) if spec == result),
        cost=elements_moved(request) + float(result.element_count * len(steps)),
    )


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    assert native.LIBRARY is not None
    chain, result = Chain.of(request), operands.required(outputs)
    layout = _Layout(request, chain)
    specs = [operands.input_spec(request, i) for i in range(chain.input_count)]
    scalars = np.array(chain.constants, np.float32)
    addresses = [
        *(native.address(array) for array in inputs),
        *(scalars.ctypes.data + scalars.itemsize * i for i in range(scalars.size)),
    ]
    read = [
        _Input(
            address,
            layout.sizes[i],
            (INTEGER * RANK_MAX)(*layout.strides[i]),
            layout.places[i],
            layout.is_periodic(i),
        )
        for i, address in enumerate(addresses)
    ]
    first = chain.first_result
    values = [*range(first), *(first + register for register in layout.results)]
    steps = []
    for i, step in enumerate(chain.requests(request, specs, result.shape)):
        found = _function(step)
        assert found is not None, step.operator
        name, parameters = found
        numbers = [values[value] for value in chain.steps[i].operands]
        numbers += numbers[:1] * (OPERANDS - len(numbers))
        address = native.LIBRARY.address_of(f"aegis_{name}_on_tiles")
        steps.append(_Step(address, (INTEGER * OPERANDS)(*numbers), values[first + i], *parameters))
    arguments = _Chain(
        native.address(result),
        result.itemsize,
        (INTEGER * RANK_MAX)(*layout.shape),
        _TILE,
        layout.rows,
        native.address(workspace),
        layout.workspace_bytes,
        (INTEGER * _REGISTERS)(*layout.registers),
        first,
        len(layout.registers),
        len(steps),
        (_Input * _INPUTS)(*read),
        (_Step * STEPS_MAX)(*steps),
    )
    return native.call("aegis_chain", arguments, (*inputs, *outputs, workspace, scalars))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (CpuKernel((CHAIN,), _choose, _bind, shares_work=True),)
