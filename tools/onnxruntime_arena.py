"""Print the bytes that ONNX Runtime's arena holds after two runs of a model, weights left out.

    python tools/onnxruntime_arena.py MODEL INPUTS.npz [--threads N]

ONNX Runtime tells of its arena only in its log, which goes to the process's standard error: so this
is a process of its own. Weights are kept out of the arena by a session option; what is left are
activations and scratch. The first run finds the sizes, the second takes one block for all of them,
as every later run does.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

_EXTENDED = re.compile(r"Extended allocation by (\d+) bytes")


def arena_bytes(model: Path, inputs: Path, threads: int) -> int:
    """Run this file in a process of its own and add up how its arena grew."""
    command = [sys.executable, __file__, str(model), str(inputs), "--threads", str(threads)]
    done = subprocess.run([*command, "--here"], capture_output=True, text=True, check=True)
    return sum(map(int, _EXTENDED.findall(done.stderr)))


def run_twice(model: Path, inputs: Path, threads: int) -> None:
    """Run the model with a log of every allocation."""
    onnxruntime.set_default_logger_severity(0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    session = onnxruntime.InferenceSession(str(model), options)
    with np.load(inputs) as feeds:
        for _ in range(2):
            session.run(None, dict(feeds))


def main() -> int:
    """Parse the arguments and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        run_twice(arguments.model, arguments.inputs, arguments.threads)
    else:
        print(arena_bytes(arguments.model, arguments.inputs, arguments.threads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
