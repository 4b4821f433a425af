"""What the assembler says of a kernel: NVRTC asks it, and needs no GPU for that."""

from __future__ import annotations

import re

import pytest
from cuda.bindings import nvrtc


def spilled_bytes(source: str, architecture: str) -> int:
    """Compile a source; return the bytes of registers that its kernel stores and loads again."""
    code, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    options = [
        b"--std=c++17",
        f"--gpu-architecture={architecture}".encode(),
        b"--ptxas-options=-v",
    ]
    (code,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytes(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    report = log.decode()
    assert code == nvrtc.nvrtcResult.NVRTC_SUCCESS, f"{report}\n{source}"
    found = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    if not found:
        pytest.skip("it compiles, but this NVRTC has no report of spills")
    return sum(map(int, found))
