"""Tools that measure a manifest of one model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "manifests" / "quickstart" / "digits.onnx"
MANIFEST = """
manifest_version = 1
name = "one"
[[models]]
name = "digits"
path = "{path}"
"""


def measured(
    tool: str, folder: Path, path: str, *options: str
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run a tool on a manifest of a model; return how it ended, and where its record is, if any."""
    manifest, record = folder / "one.toml", folder / "record.json"
    manifest.write_text(MANIFEST.format(path=path))
    command = [sys.executable, ROOT / "tools" / tool, manifest, *options, "--json", record]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done, record


def assert_told_what_is_wrong(tool: str, folder: Path, *options: str) -> None:
    """Check that a model that is not there is one error, and no record."""
    done, record = measured(tool, folder, "not-there.onnx", *options)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "not-there.onnx" in done.stderr
    assert "Traceback" not in done.stderr
    assert not record.exists()
