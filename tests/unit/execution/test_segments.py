"""Cuts that come from what steps do, not from how long they happened to take."""

import itertools
import subprocess
import sys
from pathlib import Path

from aegis_pipe.app import plan_deployment
from aegis_pipe.execution.segments import cost_model
from aegis_pipe.manifest.loader import load_manifest

LIGHT = "package://onnx/backend/test/data/light/light_"
MODELS = ("squeezenet", "shufflenet", "resnet50")


def planned(folder: Path):
    path = folder / "cuts.toml"
    text = 'manifest_version = 1\nname = "cuts"\nstreams = { max_block = "2 ms" }\n'
    text += "".join(f'[[models]]\nname = "{m}"\npath = "{LIGHT}{m}.onnx"\n' for m in MODELS)
    path.write_text(text)
    return plan_deployment(load_manifest(path))


def test_no_segment_is_taken_to_last_longer_than_allowed_unless_it_is_one_kernel(tmp_path):
    plan = planned(tmp_path)
    longest_ns = plan.manifest.streams.max_block_ns
    costs = cost_model(plan.device)
    assert any(len(cuts) > 3 for cuts in plan.cuts.boundaries.values())
    for model in plan.models:
        durations_ns = costs.durations_ns(model)
        edges = [0, *plan.cuts.boundaries[model.name], len(durations_ns)]
        for first, end in itertools.pairwise(edges):
            assert end - first == 1 or sum(durations_ns[first:end]) <= longest_ns
        assert plan.cuts.origin(model.name) == "cost model"


_PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_segments import planned
print(planned(Path(sys.argv[1])).cuts.boundaries)
"""


def test_cuts_are_the_same_in_every_process(tmp_path):
    here = planned(tmp_path).cuts.boundaries
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, tmp_path, *paths],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(here)
