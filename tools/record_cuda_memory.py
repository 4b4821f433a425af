"""Hold the memory that a GPU's driver counts against the plan, by NVML.

    python tools/record_cuda_memory.py --networks FOLDER --json FILE

Each manifest runs in a process of its own, alone on the GPU: what NVML counts then, less what it
counted before, is the plan, the CUDA context with its libraries and kernels (which a process that
has only opened the device has too, but for kernels and graphs), and what the driver rounds up.
Networks are those of tools/make_networks.py (FOLDER is filled if they are not there).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aegis_pipe import open_pipeline
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.registry import open_device
from aegis_pipe.errors import AegisError

MANIFEST = """
manifest_version = 1
name = "memory"
[device]
kind = "cuda"
[streams]
count = {streams}
max_block = "1 h"
[[models]]
name = "{network}"
path = "{networks}/{network}.onnx"
precision = "{precision}"
shapes = {{ {shapes} }}
"""
_IDS = "input_ids = [{0}, 128], attention_mask = [{0}, 128], token_type_ids = [{0}, 128]"
_IMAGE = "image = [{0}, 3, 224, 224]"
CASES = (
    ("resnet50", "fp16", 32, 1, _IMAGE),
    ("resnet50", "fp16", 32, 4, _IMAGE),
    ("bert-base", "fp16", 64, 1, _IDS),
    ("bert-base", "fp16", 64, 4, _IDS),
)
"""Network, precision, batch, streams, shapes: what more streams add beyond the plan is graphs."""


def counted_bytes() -> int:
    """Return what NVML counts on the whole GPU."""
    import pynvml

    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    finally:
        pynvml.nvmlShutdown()


def measure(manifest: str) -> dict[str, int]:
    """Open a manifest, or only the device if it is empty; return what is counted and planned."""
    if not manifest:
        with open_device("cuda", clock=SystemClock()).context:
            return {"counted_bytes": counted_bytes(), "planned_bytes": 0}
    with open_pipeline(manifest) as runtime:
        return {"counted_bytes": counted_bytes(), "planned_bytes": runtime.plan.total_bytes}


def row_of(manifest: str) -> dict[str, int]:
    """Measure in a process of its own."""
    before = counted_bytes()
    command = [sys.executable, __file__, "--measure", manifest]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    found["counted_bytes"] -= before
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases, print them, and write them where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--measure", metavar="MANIFEST", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return 0
    # First, so that a GPU that is not here is told in its own words.
    open_device("cuda", clock=SystemClock()).context.close()
    with tempfile.TemporaryDirectory() as folder:
        networks = (options.networks or Path(folder)).resolve()
        tool = Path(__file__).with_name("make_networks.py")
        names = sorted({case[0] for case in CASES})
        subprocess.run([sys.executable, tool, networks, *names], check=True, stdout=sys.stderr)
        opened_bytes = row_of("")["counted_bytes"]
        rows: list[dict[str, Any]] = []
        for network, precision, batch, streams, shapes in CASES:
            path = Path(folder, "memory.toml")
            text = MANIFEST.format(
                streams=streams,
                network=network,
                networks=networks,
                precision=precision,
                shapes=shapes.format(batch),
            )
            path.write_text(text, "utf-8")
            figures = row_of(str(path))
            beyond = figures["counted_bytes"] - opened_bytes - figures["planned_bytes"]
            case = {"network": network, "precision": precision, "batch": batch, "streams": streams}
            of_plan = round(beyond / figures["planned_bytes"], 4)
            rows.append({**case, **figures, "beyond_bytes": beyond, "beyond_of_plan": of_plan})
            print(json.dumps(rows[-1]), flush=True)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "device_opened_bytes": opened_bytes,
        "rows": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(json.dumps({"device_opened_bytes": opened_bytes}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AegisError as error:
        sys.exit(f"error: {error}")
