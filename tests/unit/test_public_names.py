"""What `import aegis_pipe` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from inspect import isclass
from pathlib import Path

import pytest

import aegis_pipe
from aegis_pipe import errors

NAMES = [
    "AegisError",
    "BudgetExceededError",
    "DeadlineExceededError",
    "DeviceLostError",
    "DeviceUnavailableError",
    "DynamicShapeError",
    "ErrorCategory",
    "FatalError",
    "InvalidInputError",
    "InvalidLifetimeError",
    "InvalidModelError",
    "KernelError",
    "Manifest",
    "ManifestError",
    "MemoryOverrunError",
    "PermanentError",
    "PipelineError",
    "Problem",
    "QueueFullError",
    "RequestCancelledError",
    "Runtime",
    "RuntimeStoppedError",
    "TransientError",
    "UnsupportedOperatorError",
    "__version__",
    "load_manifest",
    "open_pipeline",
]


def test_the_public_names_are_these() -> None:
    assert sorted(aegis_pipe.__all__) == NAMES
    assert set(NAMES) <= set(dir(aegis_pipe))
    for name in NAMES:
        assert getattr(aegis_pipe, name) is not None


def test_every_error_is_public() -> None:
    of_the_tree = {
        name
        for name, value in vars(errors).items()
        if isclass(value) and issubclass(value, errors.AegisError)
    }
    assert of_the_tree <= set(NAMES)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'open_pipe'"):
        _ = aegis_pipe.open_pipe


def in_a_new_process(code: str) -> list[str]:
    """Run code that prints names, with warnings as errors; return them."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("name", ["", "AegisError", "__version__"])
def test_the_import_is_light(name: str) -> None:
    use = f"aegis_pipe.{name}" if name else "pass"
    code = f"import sys; before = set(sys.modules); import aegis_pipe; {use}\n"
    code += "print(*{n.partition('.')[0] for n in sys.modules.keys() - before})"
    brought = set(in_a_new_process(code)) - set(sys.stdlib_module_names)
    assert brought == {"aegis_pipe"}


def test_opening_names_brings_no_device_and_no_exporter_along() -> None:
    code = "import aegis_pipe, sys; aegis_pipe.open_pipeline; print(*sys.modules)"
    modules = in_a_new_process(code)
    assert "aegis_pipe.app" in modules
    assert {"cuda", "grpc", "urllib3", "opentelemetry"}.isdisjoint(modules)


def test_a_manifest_does_not_wait_for_what_it_does_not_ask_for(tmp_path: Path) -> None:
    """Pictures, masked arrays, what sends or serves telemetry: each brings much along."""
    model = Path(__file__).parents[2] / "manifests" / "quickstart" / "digits.onnx"
    manifest = tmp_path / "one.toml"
    manifest.write_text(
        f'manifest_version = 1\nname = "one"\n[[models]]\nname = "digits"\npath = "{model}"\n'
    )
    code = f"import aegis_pipe, sys\nwith aegis_pipe.open_pipeline({str(manifest)!r}): pass\n"
    modules = set(in_a_new_process(code + "print(*sys.modules)"))
    assert "aegis_pipe.device.cpu.context" in modules
    assert modules.isdisjoint({"PIL", "numpy.ma", "http", "ssl", "opentelemetry", "grpc"})
