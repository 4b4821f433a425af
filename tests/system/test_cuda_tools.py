"""The tools that measure a GPU, as they are called where something that they need is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_packages_that_are_missing_are_one_line(without_torch: Path) -> None:
    done = call("bench_cuda.py", packages=without_torch)
    assert done.returncode == 1
    assert done.stderr.startswith("error: networks come from torch, ")
    assert "not found: torch, torchvision, transformers" in done.stderr
    assert done.stderr.count("\n") == 1


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
