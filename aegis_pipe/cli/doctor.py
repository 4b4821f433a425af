"""Say what this machine has, and what is missing for which feature."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib import metadata

from aegis_pipe import __version__, units
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.registry import AUTO, device_kinds, open_device
from aegis_pipe.errors import AegisError
from aegis_pipe.parallel import cores

LIBRARIES = ("numpy", "onnx", "ml-dtypes", "opentelemetry-sdk", "grpcio", "pillow")
VECTOR_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take `--json`."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the findings; 0 even if a device is missing, as that is no failure of this machine."""
    found = findings()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for topic, facts in found.items():
        print(topic)
        for name, value in facts.items():
            print(f"  {name:<20} {value}".replace("\n", "\n" + " " * 21))
    return 0


def findings() -> dict[str, dict[str, str]]:
    """Return facts by topic: `software`, `processor`, `devices`."""
    return {
        "software": {
            "aegis-pipe": __version__,
            "python": f"{platform.python_version()} ({sys.executable})",
            "system": platform.platform(),
            **{name: _version(name) for name in LIBRARIES},
        },
        "processor": {
            "cores": str(cores()),
            "vector instructions": ", ".join(_vector_flags()) or "none known",
        },
        "devices": {kind: _device(kind) for kind in device_kinds() if kind != AUTO},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _vector_flags() -> list[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            words = set(file.read().split())
    except OSError:
        return []
    return [flag for flag in VECTOR_FLAGS if flag in words]


def _device(kind: str) -> str:
    try:
        with open_device(kind, clock=SystemClock()).context as context:
            about = context.description
            memory = units.format_size(about.memory_bytes)
            libraries = "".join(f"; {name}: {what}" for name, what in about.library_versions)
            return (
                f"ready: {about.name}, {about.model}, {about.compute_units} units, {memory}"
                f"{libraries}"
            )
    except AegisError as error:
        return f"not usable: {error}"
