"""Compare our CPU device with ONNX Runtime's, one thread each: operators, or whole models.

Both run in this process and take turns, so that other load meets both alike; each figure is the
best of its runs. Operators: ONNX Runtime writes into bound memory (IOBinding), as our kernels do,
but its time includes its session's call, and for a lone convolution its reordering of the layout.
Models: both copy inputs in and outputs out.

    python tools/bench_kernels.py [--json FILE] [--only SUBSTRING] [--repeats N]
    python tools/bench_kernels.py --models                # the light models of the `onnx` package
    python tools/bench_kernels.py --models a.onnx b.onnx
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from aegis_pipe import onnx_backend
from aegis_pipe.device.cpu.kernels import KERNELS, native
from aegis_pipe.execution.graph import OperatorNode
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.execution.operators.table import OperatorContext
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorId, TensorSpec

OPSET = 20
ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Case:
    """One operator with its operands' shapes; `constants` are weights, the rest is input."""

    name: str
    operator: str
    inputs: tuple[tuple[int, ...], ...]
    constants: tuple[tuple[int, ...], ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


def convolution(
    name: str, depth: int, maps: int, size: int, kernel: int, stride: int = 1, group: int = 1
) -> Case:
    """Return a square convolution with bias and half padding."""
    return Case(
        f"conv {name} {kernel}x{kernel}s{stride} {depth}>{maps} @{size}",
        "Conv",
        ((1, depth, size, size),),
        ((maps, depth // group, kernel, kernel), (maps,)),
        {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": group},
    )


CASES = (
    convolution("RN50", 3, 64, 224, 7, 2),
    convolution("RN50", 64, 64, 56, 1),
    convolution("RN50", 64, 64, 56, 3),
    convolution("RN50", 64, 256, 56, 1),
    convolution("RN50", 256, 512, 56, 1, 2),
    convolution("RN50", 128, 128, 28, 3),
    convolution("RN50", 512, 128, 28, 1),
    convolution("RN50", 256, 256, 14, 3),
    convolution("RN50", 1024, 256, 14, 1),
    convolution("RN50", 512, 512, 7, 3),
    convolution("RN50", 2048, 512, 7, 1),
    convolution("MNv2", 3, 32, 224, 3, 2),
    convolution("MNv2", 16, 96, 112, 1),
    convolution("MNv2", 144, 24, 56, 1),
    convolution("MNv2", 96, 96, 112, 3, 2, 96),
    convolution("MNv2", 144, 144, 56, 3, 1, 144),
    convolution("MNv2", 384, 384, 14, 3, 1, 384),
    convolution("MNv2", 960, 960, 7, 3, 1, 960),
    Case("gemm 128x768x768", "Gemm", ((128, 768),), ((768, 768), (768,))),
    Case("gemm 128x768x3072", "Gemm", ((128, 768),), ((768, 3072), (3072,))),
    Case("gemm 128x3072x768", "Gemm", ((128, 3072),), ((3072, 768), (768,))),
    Case("gemm 512x768x3072", "Gemm", ((512, 768),), ((768, 3072), (3072,))),
    Case("gemm 1x2048x1000", "Gemm", ((1, 2048),), ((2048, 1000), (1000,))),
    Case("gemm 8x256x256", "Gemm", ((8, 256),), ((256, 256), (256,))),
    Case("matmul 12x128x64x128", "MatMul", ((12, 128, 64), (12, 64, 128))),
    Case("matmul 12x128x128x64", "MatMul", ((12, 128, 128), (12, 128, 64))),
    Case("relu 256x56x56", "Relu", ((1, 256, 56, 56),)),
    Case("add 256x56x56", "Add", ((1, 256, 56, 56), (1, 256, 56, 56))),
    Case("add bias 128x768", "Add", ((1, 128, 768), (768,))),
    Case("mul channel 256x56x56", "Mul", ((1, 256, 56, 56), (1, 256, 1, 1))),
    Case("sigmoid 64x56x56", "Sigmoid", ((1, 64, 56, 56),)),
    Case("tanh 128x768", "Tanh", ((128, 768),)),
    Case("erf 128x3072", "Erf", ((128, 3072),)),
    Case("gelu 128x3072", "Gelu", ((128, 3072),)),
    Case("hard swish 64x56x56", "HardSwish", ((1, 64, 56, 56),)),
    Case("leaky relu 64x56x56", "LeakyRelu", ((1, 64, 56, 56),)),
    Case(
        "max pool 3x3s2 64x112x112",
        "MaxPool",
        ((1, 64, 112, 112),),
        attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4},
    ),
    Case(
        "average pool 3x3s1 64x35x35",
        "AveragePool",
        ((1, 64, 35, 35),),
        attributes={"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4},
    ),
    Case("global average 2048x7x7", "GlobalAveragePool", ((1, 2048, 7, 7),)),
    Case("softmax 1536x128", "Softmax", ((1536, 128),)),
    Case("softmax 12x197x197", "Softmax", ((12, 197, 197),)),
    Case("layer norm 128x768", "LayerNormalization", ((1, 128, 768),), ((768,), (768,))),
    Case(
        "batch norm 64x56x56",
        "BatchNormalization",
        ((1, 64, 56, 56),),
        ((64,), (64,), (64,), (64,)),
    ),
)


def node_of(case: Case) -> onnx.NodeProto:
    """Return the case as an ONNX node; operands are x0, x1, ..., then w0, w1, ..."""
    names = [f"x{i}" for i in range(len(case.inputs))]
    names += [f"w{i}" for i in range(len(case.constants))]
    return helper.make_node(case.operator, names, ["y"], **case.attributes)


def random_operands(case: Case) -> list[np.ndarray]:
    """Return operands in order; positive constants, so that variances are."""
    generator = np.random.default_rng(0)
    inputs = [generator.standard_normal(shape, dtype=np.float32) for shape in case.inputs]
    scale = 1 / math.sqrt(max(1, math.prod(case.constants[0][1:]))) if case.constants else 1
    constants = [generator.random(shape, dtype=np.float32) * scale for shape in case.constants]
    return inputs + constants


def onnxruntime_call(case: Case, values: list[np.ndarray]) -> tuple[Callable[[], None], np.ndarray]:
    """Return a call of a one-thread session, and its output."""
    count = len(case.inputs)
    inputs = [
        helper.make_tensor_value_info(f"x{i}", onnx.TensorProto.FLOAT, shape)
        for i, shape in enumerate(case.inputs)
    ]
    weights = [numpy_helper.from_array(v, f"w{i}") for i, v in enumerate(values[count:])]
    output = onnx.ValueInfoProto(name="y")
    graph = helper.make_graph([node_of(case)], "case", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {f"x{i}": value for i, value in enumerate(values[:count])}
    result = session.run(None, feeds)[0]
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    target = np.empty_like(result)
    binding.bind_output("y", "cpu", 0, np.float32, target.shape, target.ctypes.data)
    return (lambda: session.run_with_iobinding(binding)), target


def aligned(content: np.ndarray) -> np.ndarray:
    """Copy to memory aligned as planned memory is."""
    raw = np.empty(content.nbytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    array = raw[start : start + content.nbytes].view(content.dtype).reshape(content.shape)
    array[...] = content
    return array


def our_call(case: Case, values: list[np.ndarray]) -> tuple[str, Callable[[], None], np.ndarray]:
    """Return the kernel's name, the bound call and its output."""
    request, positions = request_of(case, values)
    for kernel in KERNELS.candidates(request.operator):
        choice = kernel.choose(request)
        if choice is not None:
            break
    else:
        raise SystemExit(f"{case.name}: no kernel")
    inputs = [aligned(values[p]) if p >= 0 else None for p in positions]
    for position, packed in choice.packed.items():
        inputs[position] = aligned(packed.pack(values[positions[position]]))
    spec = request.outputs[0]
    assert spec is not None
    output = aligned(np.empty(spec.shape, spec.dtype))
    workspace = aligned(np.empty(choice.workspace_bytes, np.uint8))
    return choice.kernel, kernel.bind(request, choice, inputs, [output], workspace), output


def request_of(case: Case, values: list[np.ndarray]) -> tuple[KernelRequest, tuple[int, ...]]:
    """Lower the case; return the request and where its operands come from."""
    proto = node_of(case)
    attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
    node = OperatorNode(
        name=case.name,
        operator=case.operator,
        domain="",
        opset=OPSET,
        attributes={k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()},
        inputs=tuple(map(TensorId, proto.input)),
        outputs=(TensorId("y"),),
    )
    entry = OPERATORS.get(node.qualified_operator)
    assert entry is not None, case.operator
    specs = tuple(TensorSpec(v.dtype, v.shape) for v in values)
    known = {i: v for i, v in enumerate(values) if i >= len(case.inputs)}
    context = OperatorContext(node, specs, known)
    lowered = entry.lower(context)
    request = KernelRequest(
        operator=lowered.operator,
        node=case.name,
        attributes=lowered.attributes,
        inputs=tuple(specs[i] if i >= 0 else None for i in lowered.data_inputs),
        outputs=tuple(entry.infer(context)),
        constants={c: known[i] for c, i in enumerate(lowered.data_inputs) if i in known},
    )
    return request, lowered.data_inputs


def best_times_us(calls: list[Callable[[], None]], repeats: int) -> list[float]:
    """Return the best time of each call, taking turns."""
    best = [math.inf] * len(calls)
    for _ in range(repeats):
        for index, call in enumerate(calls):
            begin = time.perf_counter_ns()
            call()
            best[index] = min(best[index], (time.perf_counter_ns() - begin) / 1e3)
    return best


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Check one case against ONNX Runtime and time both."""
    values = random_operands(case)
    theirs, expected = onnxruntime_call(case, values)
    kernel, ours, result = our_call(case, values)
    theirs()
    ours()
    their_us, our_us = best_times_us([theirs, ours], repeats)
    return _row(case.name, kernel, their_us, our_us, result, expected)


def light_models() -> list[Path]:
    """Return the models that the `onnx` package brings along."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return sorted(folder.glob("*.onnx"))


def measure_model(path: Path, repeats: int) -> dict[str, Any]:
    """Check one model with random inputs against ONNX Runtime and time both."""
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    generator = np.random.default_rng(0)
    feeds = {
        value.name: generator.random(
            [max(1, size.dim_value) for size in value.type.tensor_type.shape.dim], np.float32
        )
        for value in model.graph.input
        if value.name not in weights
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    prepared = onnx_backend.prepare(model, device="CPU")
    expected, result = session.run(None, feeds)[0], prepared.run(feeds)[0]
    their_us, our_us = best_times_us(
        [lambda: session.run(None, feeds), lambda: prepared.run(feeds)], repeats
    )
    return _row(path.stem, "", their_us, our_us, result, expected)


def _row(
    case: str,
    kernel: str,
    their_us: float,
    our_us: float,
    result: np.ndarray,
    expected: np.ndarray,
) -> dict[str, Any]:
    error = float(np.abs(result - expected).max() / max(1.0, float(np.abs(expected).max())))
    return {
        "case": case,
        "kernel": kernel,
        "onnxruntime_us": round(their_us, 1),
        "ours_us": round(our_us, 1),
        "ratio": round(our_us / their_us, 3),
        "error": error,
    }


def _rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if arguments.models is not None:
        for path in arguments.models or light_models():
            if arguments.only in path.stem:
                yield measure_model(path, arguments.repeats)
        return
    for case in CASES:
        if arguments.only in case.name:
            yield measure(case, arguments.repeats)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--models", type=Path, nargs="*", help="ONNX files instead of operators")
    arguments = parser.parse_args()
    print(f"kernels {native.STATUS}; onnxruntime {onnxruntime.__version__}; best of repeats, us")
    print(f"{'case':38} {'kernel':32} {'ORT':>9} {'ours':>9} {'ratio':>6} {'error':>8}")
    rows = []
    for row in _rows(arguments):
        rows.append(row)
        print(
            f"{row['case']:38} {row['kernel']:32} {row['onnxruntime_us']:9.1f} "
            f"{row['ours_us']:9.1f} {row['ratio']:6.2f} {row['error']:8.1e}",
            flush=True,
        )
    ratios = [row["ratio"] for row in rows]
    if ratios:
        print(f"geometric mean of the ratios: {math.exp(np.mean(np.log(ratios))):.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"library": native.STATUS, "cases": rows}, indent=2))


if __name__ == "__main__":
    main()
