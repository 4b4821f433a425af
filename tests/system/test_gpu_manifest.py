"""The manifest for GPUs, on any machine: it is right, and without a GPU one clear error."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def call(verb: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "aegis_pipe", verb, ROOT / "manifests" / "gpu.toml"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_it_is_right() -> None:
    assert call("validate").returncode == 0


def test_without_a_gpu_it_is_one_error_and_nothing_runs() -> None:
    for verb in ("plan", "up"):
        done = call(verb)
        assert (done.returncode, done.stdout) == (1, ""), verb
        assert done.stderr.startswith("error: cuda:0: ")
        assert done.stderr.count("error: ") == 1
        assert done.stderr.count("  hint: ") == 1
