"""A manifest on the GPU, from file to results: scheduling, copies, precision, memory."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import aegis_pipe
from aegis_pipe.errors import PermanentError
from aegis_pipe.events import RequestFinished, SegmentFinished

MANIFEST = """
manifest_version = 1
name = "gpu"
[device]
kind = "{kind}"
memory_budget = "256 MiB"
[streams]
count = {streams}
max_block = "20 us"
[[models]]
name = "net"
path = "net.onnx"
precision = "{precision}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v", "b"], ["d"], pads=[1, 1, 1, 1]),
        node("Add", ["d", "r"], ["a"]),
        node("GlobalAveragePool", ["a"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "u"], ["z"], transB=1),
        node("Softmax", ["z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", TensorProto.FLOAT, [2, 3, 32, 32])],
        [value("y", TensorProto.FLOAT, [2, 24])],
        [
            weights("w", 16, 3, 3, 3),
            weights("v", 16, 16, 3, 3),
            weights("b", 16),
            weights("u", 24, 16),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path


def _results(
    folder: Path, inputs: list[np.ndarray], kind: str, precision: str, streams: int
) -> list[np.ndarray]:
    path = folder / f"{kind}-{precision}-{streams}.toml"
    path.write_text(MANIFEST.format(kind=kind, precision=precision, streams=streams))
    with aegis_pipe.open_pipeline(path) as runtime:
        futures = [runtime.submit("net", {"x": x}) for x in inputs]
        results = [future.result(timeout=60)["y"] for future in futures]
        assert runtime.statistics().allocations_after_start == 0
    return results


# tf32 has the mantissa of fp16: ten bits.
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-6), ("tf32", 1e-3), ("fp16", 1e-3), ("bf16", 1e-2)]
)
def test_as_the_cpu_and_the_same_bits(folder: Path, precision: str, tolerance: float) -> None:
    rng = np.random.default_rng(4)
    inputs = [rng.standard_normal((2, 3, 32, 32)).astype(np.float32) for _ in range(40)]
    wanted = _results(folder, inputs, "cpu", "fp32", 1)
    alone = _results(folder, inputs, "cuda", precision, 1)
    for got, expected in zip(alone, wanted, strict=True):
        np.testing.assert_allclose(got, expected, atol=tolerance)
    beside = _results(folder, inputs, "cuda", precision, 3)
    assert [each.tobytes() for each in beside] == [each.tobytes() for each in alone]


def test_a_budget_that_is_too_small_is_refused_before_anything_is_reserved(folder: Path) -> None:
    path = folder / "small.toml"
    text = MANIFEST.format(kind="cuda", precision="fp32", streams=1)
    path.write_text(text.replace("256 MiB", "16 KiB"))
    with pytest.raises(aegis_pipe.BudgetExceededError):
        aegis_pipe.open_pipeline(path)


def test_the_same_bits_a_thousand_times_alone_and_beside_another(folder: Path) -> None:
    text = MANIFEST.format(kind="cuda", precision="fp16", streams=4)
    path = folder / "two.toml"
    path.write_text(text + '[[models]]\nname = "other"\npath = "net.onnx"\nprecision = "tf32"\n')
    x = np.random.default_rng(4).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with aegis_pipe.open_pipeline(path) as runtime:
        alone = {runtime.infer("net", {"x": x})["y"].tobytes() for _ in range(1000)}
        beside = set()
        for _ in range(50):
            pairs = [
                (runtime.submit("net", {"x": x}), runtime.submit("other", {"x": x}))
                for _ in range(20)
            ]
            beside |= {mine.result(timeout=60)["y"].tobytes() for mine, _ in pairs}
            for _, other in pairs:
                other.result(timeout=60)
    assert len(alone) == 1
    assert beside == alone


def _used_bytes(nvml: ModuleType) -> int:
    """Return what this process has of the GPU; if NVML can not tell that, what is in use at all."""
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
        if process.pid == os.getpid() and process.usedGpuMemory is not None:
            return int(process.usedGpuMemory)
    # Not listed: process numbers in a container are others. Other tests wait meanwhile.
    return int(nvml.nvmlDeviceGetMemoryInfo(handle).used)


@pytest.mark.gpu_alone
@pytest.mark.filterwarnings("ignore:The pynvml package is deprecated:FutureWarning")
def test_the_device_takes_the_memory_that_was_planned(folder: Path) -> None:
    nvml = pytest.importorskip("pynvml", reason="no nvidia-ml-py")
    nvml.nvmlInit()

    def used_bytes(batch: int) -> tuple[int, int]:
        """Return what NVML sees in use, and what was planned."""
        path = folder / f"memory-{batch}.toml"
        text = MANIFEST.format(kind="cuda", precision="fp32", streams=1)
        path.write_text(text.replace("256 MiB", "16 GiB").replace("net.onnx", f"net-{batch}.onnx"))
        model = onnx.load(folder / "net.onnx")
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = batch
        onnx.save(model, folder / f"net-{batch}.onnx")
        with aegis_pipe.open_pipeline(path) as runtime:
            plan = runtime.plan
            planned = plan.weights_bytes + sum(arena.size_bytes for arena in plan.arenas)
            return _used_bytes(nvml), planned

    try:
        small, large = used_bytes(2), used_bytes(16384)
    finally:
        nvml.nvmlShutdown()
    planned = large[1] - small[1]
    # The context, its kernels and the libraries' handles are in both.
    assert abs(large[0] - small[0] - planned) <= 0.01 * planned + (4 << 20)


def test_stamps_lie_within_their_execution(folder: Path) -> None:
    path = folder / "stamps.toml"
    path.write_text(MANIFEST.format(kind="cuda", precision="fp16", streams=1))
    events: list[object] = []
    x = np.zeros((2, 3, 32, 32), np.float32)
    with aegis_pipe.open_pipeline(path, listeners=[events.append]) as runtime:
        runtime.stamps_kernels = True
        for _ in range(400):
            runtime.infer("net", {"x": x})
    seen = 0
    for event in events:
        if isinstance(event, SegmentFinished) and event.kernel_times:
            times = np.frombuffer(event.kernel_times, np.int64)
            seen += 1
            assert times.min() >= event.start_ns - 50_000
            assert times.max() <= event.end_ns + 50_000
    assert seen


def test_a_residual_is_read_once_it_is_there(tmp_path: Path) -> None:
    """cuDNN's kernels begin while the one before runs, and read a residual without waiting."""
    rng = np.random.default_rng(5)
    node, value = helper.make_node, helper.make_tensor_value_info

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    # A stage of ResNet-50 begins like this: two convolutions, and a third that adds the second's.
    nodes = [
        node("Conv", ["x", "narrow"], ["n"]),
        node("Conv", ["n", "wide"], ["residual"]),
        node("Conv", ["large", "half"], ["h"], strides=[2, 2]),
        node("Add", ["h", "residual"], ["s"]),
        node("Relu", ["s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [
            value("x", TensorProto.FLOAT, [8, 1024, 14, 14]),
            value("large", TensorProto.FLOAT, [8, 512, 28, 28]),
        ],
        [value("y", TensorProto.FLOAT, [8, 1024, 14, 14])],
        [
            weights("narrow", 256, 1024, 1, 1),
            weights("wide", 1024, 256, 1, 1),
            weights("half", 1024, 512, 1, 1),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "net.onnx")
    # In turns: what is read too early is the other one's.
    requests = [
        {
            "x": rng.standard_normal((8, 1024, 14, 14)).astype(np.float32),
            "large": rng.standard_normal((8, 512, 28, 28)).astype(np.float32),
        }
        for _ in range(2)
    ]
    path = tmp_path / "gpu.toml"
    text = MANIFEST.format(kind="cuda", precision="tf32", streams=1)
    path.write_text(text.replace('max_block = "20 us"', 'max_block = "10 ms"'))
    with aegis_pipe.open_pipeline(path) as runtime:
        results = {
            (turn, runtime.infer("net", requests[turn])["y"].tobytes()) for turn in [0, 1] * 50
        }
    assert len(results) == 2


def test_streams_with_multiprocessors_of_their_own(folder: Path) -> None:
    """The same bits as with the whole GPU: a part runs what was chosen for the whole."""
    x = np.random.default_rng(3).standard_normal((2, 3, 32, 32)).astype(np.float32)
    results = {}
    for shares in ("", "sm = [16, 32]"):
        path = folder / f"parts-{bool(shares)}.toml"
        text = MANIFEST.format(kind="cuda", precision="fp16", streams=2)
        path.write_text(text.replace("[streams]", f"[streams]\n{shares}"))
        with aegis_pipe.open_pipeline(path) as runtime:
            futures = [runtime.submit("net", {"x": x}) for _ in range(40)]
            results[shares] = {future.result(timeout=60)["y"].tobytes() for future in futures}
            assert runtime.statistics().allocations_after_start == 0
    assert len(results[""]) == 1
    assert results["sm = [16, 32]"] == results[""]


def test_more_multiprocessors_than_there_are(folder: Path) -> None:
    path = folder / "too-many.toml"
    text = MANIFEST.format(kind="cuda", precision="fp16", streams=2)
    path.write_text(text.replace("[streams]", "[streams]\nsm = [16, 1000]"))
    with pytest.raises(PermanentError, match="streams are to have 1016 multiprocessors, but"):
        aegis_pipe.open_pipeline(path)


def _save_long(path: Path) -> None:
    """Save a model of the same input that takes a GPU a while: 0.4 Tflop in 32 products."""
    rng = np.random.default_rng(5)
    weights = (rng.standard_normal((2048, 2048)) / np.sqrt(2048)).astype(np.float32)
    constants = {
        "w": weights,
        "rows": np.array([1, 3, 2048]),
        "many": np.array([512, 3, 2048]),
        "flat": np.array([-1, 2048]),
    }
    lines = ["r = Reshape(x, rows) e = Expand(r, many) m0 = Reshape(e, flat)"]
    lines += [f"m{n + 1} = MatMul(m{n}, w)" for n in range(32)]
    lines.append("y = ReduceMean <axes = [0]> (m32)")
    text = f"(float[2,3,32,32] x) => (float[1,2048] y) {{ {' '.join(lines)} }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> graph {text}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    onnx.save(model, path)


@pytest.mark.parametrize("max_block", ["300 us", "10 ms"])
def test_requests_that_follow_within_the_segments_in_flight(folder: Path, max_block: str) -> None:
    """Each has its own result, with one segment (recorded twice) and with several."""
    # Long enough that whether the next one follows is not a matter of how fast the host is.
    _save_long(folder / "net.onnx")
    rng = np.random.default_rng(6)
    inputs = [rng.standard_normal((2, 3, 32, 32)).astype(np.float32) for _ in range(300)]
    results, followed = {}, {}
    for in_flight in (1, 2, 4):
        path = folder / f"following-{in_flight}.toml"
        text = MANIFEST.format(kind="cuda", precision="fp16", streams=1)
        text = text.replace(
            "[streams]", f"[scheduler]\nqueue_capacity = 400\n[streams]\nin_flight = {in_flight}"
        )
        path.write_text(text.replace('max_block = "20 us"', f'max_block = "{max_block}"'))
        events: list[object] = []
        with aegis_pipe.open_pipeline(path, listeners=[events.append]) as runtime:
            runtime.stamps_kernels = True
            futures = [runtime.submit("net", {"x": x}) for x in inputs]
            results[in_flight] = [future.result(timeout=60)["y"].tobytes() for future in futures]
            statistics = runtime.statistics()
            assert statistics.allocations_after_start == 0
            for staging in statistics.staging:
                assert staging.peak_bytes <= staging.reserved_bytes
        segments = [event for event in events if isinstance(event, SegmentFinished)]
        first = {each.request_id: each for each in segments if each.segment == 0}
        seen_ns = {
            each.request_id: each.at_ns for each in events if isinstance(each, RequestFinished)
        }
        followed[in_flight] = sum(
            first[number + 1].launch_ns < seen_ns[number] for number in first if number + 1 in first
        )
        segments.sort(key=lambda each: each.start_ns)
        for one, other in itertools.pairwise(segments):
            assert one.end_ns <= other.start_ns + 5_000
    assert results[2] == results[1]
    assert results[4] == results[1]
    assert followed[1] == 0
    assert followed[2] > 200
    assert followed[4] > 200


@pytest.mark.parametrize("cuts", [(), (1,)])
def test_bad_data_fails_its_own_request(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    node, value = helper.make_node, helper.make_tensor_value_info
    table = np.arange(64 * 1024, dtype=np.float32).reshape(64, 1024)
    graph = helper.make_graph(
        [node("Gather", ["table", "row"], ["r"], name="look_up"), node("Erf", ["r"], ["y"])],
        "net",
        [value("row", TensorProto.INT64, [16])],
        [value("y", TensorProto.FLOAT, [16, 1024])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "net.onnx")
    path = tmp_path / "faults.toml"
    text = MANIFEST.format(kind="cuda", precision="fp32", streams=1)
    path.write_text(
        text.replace("[streams]", "[scheduler]\nqueue_capacity = 400\n[streams]\nin_flight = 2")
    )
    with aegis_pipe.open_pipeline(path, boundaries={"net": cuts}) as runtime:
        futures = [
            runtime.submit("net", {"row": np.full(16, 99 if number % 3 == 1 else number % 64)})
            for number in range(300)
        ]
        failed = [number for number, each in enumerate(futures) if each.exception(60) is not None]
    assert failed == list(range(1, 300, 3))
