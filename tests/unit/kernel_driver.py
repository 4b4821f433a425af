"""Drives one operator node through infer, lower, choose and bind, with guarded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from aegis_pipe.device.cpu.kernels import KERNELS
from aegis_pipe.execution.graph import OperatorNode
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.execution.operators.table import OperatorContext
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorId, TensorSpec

GUARD_BYTES = 256
GUARD = 0xA5


@dataclass(frozen=True)
class Driven:
    """What came out of one operator."""

    kernel: str
    outputs: tuple[np.ndarray | None, ...]
    workspace_bytes: int
    hidden_bytes: int
    """Most memory that one call held outside of the plan."""


class Guarded:
    """A 64-byte aligned array between guard bytes, filled with garbage."""

    def __init__(self, size_bytes: int) -> None:
        raw = np.full(size_bytes + 2 * GUARD_BYTES + 64, GUARD, np.uint8)
        start = -raw.ctypes.data % 64 + GUARD_BYTES
        self._before, self._after = raw[:start], raw[start + size_bytes :]
        self.bytes = raw[start : start + size_bytes]

    def array(self, spec: TensorSpec) -> np.ndarray:
        return self.bytes.view(spec.dtype).reshape(spec.shape)

    def is_intact(self) -> bool:
        return bool((self._before == GUARD).all() and (self._after == GUARD).all())


def operator_node(proto: onnx.NodeProto, opset: int) -> OperatorNode:
    attributes = {
        attribute.name: _attribute(helper.get_attribute_value(attribute))
        for attribute in proto.attribute
    }
    return OperatorNode(
        name=proto.name or "node",
        operator=proto.op_type,
        domain="" if proto.domain == "ai.onnx" else proto.domain,
        opset=opset,
        attributes=attributes,
        inputs=tuple(map(TensorId, proto.input)),
        outputs=tuple(map(TensorId, proto.output)),
    )


def _attribute(value: object) -> object:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, list):
        return tuple(map(_attribute, value))
    return value


def lower(
    node: OperatorNode,
    values: Sequence[np.ndarray | None],
    constant_positions: Sequence[int] | None = None,
) -> tuple[KernelRequest, tuple[int, ...]]:
    """Return the request and the positions of its operands; constants: static inputs at least."""
    entry = OPERATORS.get(node.qualified_operator)
    assert entry is not None
    constants = {
        position: value
        for position, value in enumerate(values)
        if value is not None
        and (position in entry.static_inputs or position in (constant_positions or ()))
    }
    specs = tuple(None if v is None else TensorSpec(v.dtype, v.shape) for v in values)
    context = OperatorContext(node, specs, constants)
    results = list(entry.infer(context))
    lowered = entry.lower(context)
    request = KernelRequest(
        operator=lowered.operator,
        node=node.name,
        attributes=lowered.attributes,
        inputs=tuple(specs[i] if i >= 0 else None for i in lowered.data_inputs),
        outputs=tuple(
            spec if name else None for spec, name in zip(results, node.outputs, strict=True)
        ),
        constants={
            canonical: constants[i]
            for canonical, i in enumerate(lowered.data_inputs)
            if i in constants
        },
    )
    return request, lowered.data_inputs


def drive(
    node: OperatorNode,
    values: Sequence[np.ndarray | None],
    constant_positions: Sequence[int] | None = None,
    *,
    compiled: bool = False,
) -> Driven | None:
    """Run a node with the first kernel that takes it, compiled or not; None if none does.

    Asserts that nothing is written outside outputs and workspace, that a second run, over other
    garbage, gives the same bits, and so does a run in place, where the kernel offers that.
    """
    request, positions = lower(node, values, constant_positions)
    for kernel in KERNELS.candidates(request.operator):
        choice = kernel.choose(request)
        if choice is not None and choice.kernel.startswith("native.") == compiled:
            break
    else:
        return None
    inputs: list[np.ndarray | None] = []
    guards = []
    for canonical, position in enumerate(positions):
        value = values[position] if position >= 0 else None
        if value is None:
            inputs.append(None)
            continue
        packed = choice.packed.get(canonical)
        content = packed.pack(value) if packed else np.asarray(value, order="C")
        assert packed is None or content.shape == (packed.size_bytes,)
        memory = Guarded(content.nbytes)
        array = memory.array(TensorSpec(content.dtype, content.shape))
        np.copyto(array, content)
        array.flags.writeable = False
        guards.append(memory)
        inputs.append(array)
    before = [None if array is None else array.tobytes() for array in inputs]
    memories = [Guarded(spec.size_bytes) if spec else None for spec in request.outputs]
    outputs = [
        memory.array(spec) if memory and spec else None
        for memory, spec in zip(memories, request.outputs, strict=True)
    ]
    if choice.view is not None:
        source, target = choice.view
        spec = request.outputs[target]
        outputs[target] = inputs[source].reshape(-1).view(spec.dtype).reshape(spec.shape)
        return Driven(choice.kernel, tuple(outputs), 0, 0)
    workspace = Guarded(choice.workspace_bytes)
    call = kernel.bind(
        request, choice, inputs, outputs, workspace.bytes if choice.workspace_bytes else None
    )
    call()
    first = [None if array is None else array.copy() for array in outputs]
    _spoil(workspace.bytes, *(memory.bytes for memory in memories if memory))
    # What a call holds itself it holds every time; other threads of the process do not.
    hidden_bytes = min(_peak_bytes(call) for _ in range(3))
    for once, again in zip(first, outputs, strict=True):
        assert once is None or once.tobytes() == again.tobytes(), "a second run differs"
    assert all(memory.is_intact() for memory in (*guards, workspace, *filter(None, memories)))
    assert before == [None if array is None else array.tobytes() for array in inputs]
    for source, target in choice.in_place:
        shared = [*inputs]
        alias = outputs[target]
        assert request.inputs[source] == request.outputs[target]
        np.copyto(alias, inputs[source])
        shared[source] = alias
        kernel.bind(request, choice, shared, outputs, workspace.bytes)()
        assert alias.tobytes() == first[target].tobytes(), "in place differs"
    return Driven(choice.kernel, tuple(first), choice.workspace_bytes, hidden_bytes)


def _peak_bytes(call: Callable[[], None]) -> int:
    """Run the call and return the most memory it held at once; NumPy reports its allocations."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _spoil(*memories: np.ndarray) -> None:
    for memory in memories:
        memory[:] = np.arange(memory.size, dtype=np.uint8)


def make_node(
    operator: str,
    input_count: int | Sequence[str],
    output_count: int = 1,
    *,
    opset: int = 22,
    domain: str = "",
    **attributes: object,
) -> onnx.NodeProto:
    names = [f"i{i}" for i in range(input_count)] if isinstance(input_count, int) else input_count
    outputs = [f"o{i}" for i in range(output_count)]
    return helper.make_node(operator, names, outputs, domain=domain, **attributes)


def run_onnxruntime(
    proto: onnx.NodeProto,
    values: Sequence[np.ndarray | None],
    opset: int,
    constants: Sequence[int] = (),
) -> list[np.ndarray]:
    import onnxruntime

    known = [
        numpy_helper.from_array(value, proto.input[position])
        for position in constants
        if (value := values[position]) is not None
    ]
    feeds: Mapping[str, np.ndarray] = {
        name: value
        for position, (name, value) in enumerate(zip(proto.input, values, strict=True))
        if name and value is not None and position not in constants
    }
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    imports = [helper.make_opsetid("", opset if not proto.domain else 21)]
    if proto.domain:
        imports.append(helper.make_opsetid(proto.domain, 1))
    model = helper.make_model(
        helper.make_graph([proto], "one", inputs, outputs, known),
        opset_imports=imports,
        ir_version=9,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Several would cut the batch of a quantised LSTM, each part on a grid of its own.
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))
