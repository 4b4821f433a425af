"""AegisPipe: a declarative inference runtime.

    with aegis_pipe.open_pipeline("manifest.toml") as runtime:
        outputs = runtime.infer("detector", {"images": images})

What is named in `__all__` is the public interface. The parts that bring NumPy, ONNX or a device
along are imported at their first use, so that importing this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aegis_pipe.errors import (
    AegisError,
    BudgetExceededError,
    DeadlineExceededError,
    DeviceLostError,
    DeviceUnavailableError,
    DynamicShapeError,
    ErrorCategory,
    FatalError,
    InvalidInputError,
    InvalidLifetimeError,
    InvalidModelError,
    KernelError,
    ManifestError,
    MemoryOverrunError,
    PermanentError,
    PipelineError,
    Problem,
    QueueFullError,
    RequestCancelledError,
    RuntimeStoppedError,
    TransientError,
    UnsupportedOperatorError,
)
from aegis_pipe.version import __version__

if TYPE_CHECKING:
    from aegis_pipe.app import Runtime, open_pipeline
    from aegis_pipe.manifest import Manifest, load_manifest

__all__ = [
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

_LATE = {
    "Manifest": "aegis_pipe.manifest",
    "Runtime": "aegis_pipe.app",
    "load_manifest": "aegis_pipe.manifest",
    "open_pipeline": "aegis_pipe.app",
}
"""Public names whose modules are imported at their first use."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    value = getattr(importlib.import_module(_LATE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _LATE.keys())
