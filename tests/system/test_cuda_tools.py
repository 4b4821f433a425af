"""The tools that measure a GPU, as they are called where something that they need is missing."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from aegis_pipe.device.registry import open_device
from aegis_pipe.onnx_backend import AegisBackend
from tests.tool_modules import load_tool

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def call(tool: str, *arguments: object, packages: Path) -> subprocess.CompletedProcess[str]:
    """Run a tool; `packages` come before those that are installed."""
    path = os.pathsep.join([str(packages), str(TOOLS.parent)])
    # Nobody's GPU is asked for: what is looked for is missing on every machine.
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, TOOLS / tool, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


@pytest.fixture
def without_torch(tmp_path: Path) -> Path:
    """A folder that hides the networks' packages, installed or not."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "found = util.find_spec\n"
        "hidden = ('torch', 'torchvision', 'transformers')\n"
        "util.find_spec = lambda name, *rest: None if name in hidden else found(name, *rest)\n"
    )
    return tmp_path


@pytest.fixture
def with_torch(tmp_path: Path) -> Path:
    """A folder where the networks' packages are found, and can do nothing."""
    for name in ("torch", "torchvision", "transformers"):
        (tmp_path / f"{name}.py").write_text("__version__ = '0'\n")
    return tmp_path


def test_help_needs_nothing(without_torch: Path) -> None:
    (without_torch / "torch.py").write_text("raise ModuleNotFoundError('torch')\n")
    done = call("bench_cuda.py", "--help", packages=without_torch)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--json" in done.stdout


def test_without_torch_the_networks_are_others(without_torch: Path) -> None:
    done = call("bench_cuda.py", "--no-onnxruntime", packages=without_torch)
    assert done.returncode == 1
    networks, error, *hints = done.stderr.splitlines()
    assert networks.startswith("networks are those of tools/make_networks.py; not installed: torch")
    assert error.startswith("error: cuda:0: ")
    assert hints[0].startswith("  hint: ")


def test_rows_that_do_not_exist_are_wrong_usage(without_torch: Path) -> None:
    for wrong in (["--precisions", "int4"], ["--models", "vit_b_16", "--batches", "3"]):
        done = call("bench_cuda.py", *wrong, packages=without_torch)
        assert done.returncode == 2, wrong
        assert "error: " in done.stderr


def test_a_gpu_that_is_missing_is_an_error_and_a_hint(with_torch: Path) -> None:
    done = call("bench_cuda.py", "--no-onnxruntime", packages=with_torch)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cuda:0: ")
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_no_case_runs_where_there_is_no_gpu(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    done = call("record_conformance.py", "--json", record, packages=tmp_path)
    assert done.returncode == 1
    assert "DeviceUnavailableError: cuda:0: " in done.stderr
    assert not record.exists()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, without_torch: Path) -> ModuleType:
    """The bench, on the CPU instead of a GPU and short."""
    monkeypatch.syspath_prepend(TOOLS)
    module = load_tool("bench_cuda")
    monkeypatch.setattr(
        module, "open_device", lambda kind, clock: open_device("cpu", clock=clock, threads=2)
    )
    monkeypatch.setattr(module, "REQUESTS", 16)
    monkeypatch.setattr(module, "WARM_UPS", 1)
    return module


def test_a_row_without_torch(bench: ModuleType, tmp_path: Path) -> None:
    """One input, the batch asked for, results as ONNX Runtime has them, in half precision, too."""
    networks, peers = load_tool("bench_cuda_networks"), load_tool("bench_cuda_peers")
    subject = networks.written("mobilenet_v2", 2, tmp_path)
    assert subject.example.shape == (2, 3, 224, 224)
    assert networks.half_exporter(subject) is None
    with ExitStack() as stack:
        field = bench._ours(stack, subject, "mobilenet_v2", "fp32", conditions=True)
        rows = bench._compete(field)
        facts = rows[bench.OURS]
    assert facts["relative_error"] < 1e-5
    assert (facts["same_bits"], facts["allocations_per_request"]) == (True, 0)
    assert list(rows)[1:] == [
        f"{bench.OURS}, {way}" for way in ("one core", "real time", "polled", "all three")
    ]
    for way, row in rows.items():
        # Which this machine may forbid.
        assert "p50_ms" in row or ("real time" in row["error"] and "one core" not in way), way
    for precision, error in (("fp32", 1e-5), ("fp16", 2e-2)):
        found = peers.onnxruntime_peers(
            *(subject.path, None, subject.example, subject.expected, precision, None),
            provider="CPUExecutionProvider",
        )
        assert found["onnxruntime"].facts["relative_error"] < error


def test_inputs_beyond_the_first_become_constants(bench: ModuleType, tmp_path: Path) -> None:
    """BERT's mask and kinds of words."""
    networks = load_tool("bench_cuda_networks")
    subject = networks.written("bert_base", 1, tmp_path)
    graph = bench.ModelLoader().load(subject.path)
    assert [str(name) for name in graph.inputs] == ["input_ids"]
    assert subject.expected.shape == (1, networks.LENGTH, 768)
    assert 0.5 < subject.expected.std() < 2


def test_a_network_in_8_bits_answers_about_the_same(bench: ModuleType, tmp_path: Path) -> None:
    networks = load_tool("bench_cuda_networks")
    whole = networks.written("mobilenet_v2", 1, tmp_path)
    quantised = networks.quantised_subject(whole)
    (found,) = AegisBackend.run_model(onnx.load(quantised.path), [quantised.example])
    operators = {node.op_type for node in onnx.load(quantised.path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert 0 < bench.relative_error(found, quantised.expected) < 0.5


@pytest.mark.parametrize("tool", ["record_parity.py", "record_cuda_memory.py"])
def test_what_was_looked_for_is_told(tmp_path: Path, tool: str) -> None:
    done = call(tool, packages=tmp_path)
    assert done.returncode == 1
    error, *hints = done.stderr.splitlines()
    assert error.startswith("error: cuda:0: ")
    assert hints[0].startswith("  hint: ")
