"""Compare models on a GPU with the CPU device, in every precision, and record how far they are.

    python tools/record_parity.py --json docs/benchmarks/cuda-parity-<GPU>-<date>.json
    python tools/record_parity.py --networks FOLDER --json FILE            those of make_networks.py
    python tools/record_parity.py --precisions fp32 --json FILE voice      some, in one precision

Real models are those of manifests/zoo.toml, as far as their packages are installed (`pip install
'aegis-pipe[zoo]'`). Each answers four requests and the first once more; the CPU in fp32 has what is
expected. Exit status 1 if an output is farther away than its arithmetic allows
(`aegis_pipe/execution/output_comparison.py`), or has other bits the second time.

Where boxes are chosen by comparing scores, a rounding chooses others. There boxes and scores are
compared, too, and a choice that is not the CPU's with the one the CPU makes from the same of them:

    rows_alike          the part of the rows chosen that is among those the CPU chose from its own

Of an output that is too far the record says what may be the reason, which does not let it pass:

    by_rounding_alone   how far the CPU is, computing in fp32, if it rounds what is stored between
                        operators, and known weights (to fp16 for tf32, which has as many bits).
                        `as_far_as_rounding`: at most twice as far as that in norm, and three times
                        at its farthest (docs/decisions/0031-what-rounding-costs.md)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from aegis_pipe import __version__
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.errors import AegisError
from aegis_pipe.execution.choices import Choice, choice_of
from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.output_comparison import Arithmetic, arithmetic_of, compare
from aegis_pipe.execution.passes import PASSES, run_passes
from aegis_pipe.execution.passes.precision import HALF_DTYPES, convert, rounded
from aegis_pipe.execution.passes.rewriting import rewritten
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.manifest.model import PACKAGE_SCHEME, resolve_path
from aegis_pipe.tensor import TensorId, TensorSpec

ZOO = Path(__file__).resolve().parents[1] / "manifests" / "zoo.toml"
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
REQUESTS = 4
LIMITS = {"file-type": 257}
"""What integers are below, where a graph does not tell: of zeros and ones alone, the variances
that this model takes are differences of nearly equal numbers."""
ROUNDED = {"tf32": "fp16", "fp16": "fp16", "bf16": "bf16"}
"""What values are rounded to."""
STORED_TIMES = (2.0, 3.0)
"""How much farther than by rounding alone is about as far: in norm, at its farthest."""

Results = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Model:
    """A model file with what a manifest says of it."""

    name: str
    path: str
    folder: Path
    shapes: Mapping[str, Sequence[int]]
    bind: Mapping[str, Any]

    @property
    def missing_package(self) -> str:
        """The package that it is in, if that is not installed."""
        if not self.path.startswith(PACKAGE_SCHEME):
            return ""
        package = self.path.removeprefix(PACKAGE_SCHEME).partition("/")[0]
        return "" if importlib.util.find_spec(package) else package

    def graph(self) -> ExecutionGraph:
        """Load it."""
        shapes = {name: tuple(shape) for name, shape in self.shapes.items()}
        options = LoadOptions(shapes, self.bind, self.name)
        return ModelLoader().load(resolve_path(self.path, self.folder), options)


def listed(manifest: Path) -> list[Model]:
    """Return the models of a manifest."""
    tables = tomllib.loads(manifest.read_text(encoding="utf-8"))["models"]
    return [
        Model(
            table["name"],
            table["path"],
            manifest.parent,
            table.get("shapes", {}),
            table.get("bind", {}),
        )
        for table in tables
    ]


def requests_of(graph: ExecutionGraph, name: str) -> list[dict[str, np.ndarray]]:
    """Return requests, of which the last is the first once more."""
    requests = [generate_inputs(graph, seed) for seed in range(REQUESTS)]
    if name in LIMITS:
        for seed, inputs in enumerate(requests):
            for tensor, values in inputs.items():
                drawn = np.random.default_rng(seed).integers(0, LIMITS[name], values.shape)
                inputs[tensor] = drawn.astype(values.dtype)
    return [*requests, requests[0]]


def run(
    graph: ExecutionGraph,
    context: DeviceContext,
    requests: Sequence[Mapping[str, np.ndarray]],
    precision: str,
) -> Results:
    """Return the results of requests; every operator has to be a kernel of the device."""
    stream = context.create_stream(0)
    try:
        with StandaloneGraph(graph, context, stream, SystemClock(), precision) as standalone:
            reference = [step.operator for step in standalone.compiled.reference_steps]
            assert not reference, f"{', '.join(reference)} run as reference functions"
            return [standalone.run(inputs) for inputs in requests]
    finally:
        stream.close()


def stored_in_half(graph: ExecutionGraph, precision: str) -> ExecutionGraph:
    """Return the graph with what is stored between operators, and its weights, rounded to a half.

    The operators are those that half precision suits, after the passes; they compute in float32.
    """
    fused, _ = run_passes(graph, PASSES)
    edit = _Rounding(fused, precision)
    nodes = [each for node in fused.operators for each in edit.operators(node)]
    return rewritten(fused, nodes, constants=edit.constants, specs=edit.specs)


class _Rounding:
    """Casts to a half and back, and the tensors that these need."""

    def __init__(self, graph: ExecutionGraph, precision: str) -> None:
        self._graph = graph
        self._dtype = HALF_DTYPES[precision]
        # What conversion leaves in float32 is computed with what is stored as it is.
        halves = convert(graph, precision)
        self._suited = {
            node.name
            for node in halves.operators
            if any(halves.spec(tensor).dtype == self._dtype for tensor in node.outputs if tensor)
        }
        self.constants: dict[TensorId, np.ndarray] = {}
        self.specs: dict[TensorId, TensorSpec] = {}

    def operators(self, node: OperatorNode) -> list[OperatorNode]:
        """Return an operator with rounded constants, and casts of its results behind it."""
        if node.name not in self._suited:
            return [node]
        casts: list[OperatorNode] = []
        inputs = tuple([self._constant(tensor) for tensor in node.inputs])
        outputs = tuple([self._result(tensor, casts) for tensor in node.outputs])
        return [replace(node, inputs=inputs, outputs=outputs), *casts]

    def _is_float(self, tensor: TensorId) -> bool:
        return bool(tensor) and self._graph.spec(tensor).dtype == np.float32

    def _constant(self, tensor: TensorId) -> TensorId:
        if tensor not in self._graph.constants or not self._is_float(tensor):
            return tensor
        name = TensorId(f"{tensor}.rounded")
        (halves,) = rounded([self._graph.constants[tensor]], self._dtype)
        self.constants[name] = halves.astype(np.float32)
        return name

    def _result(self, tensor: TensorId, casts: list[OperatorNode]) -> TensorId:
        if not self._is_float(tensor) or tensor in self._graph.outputs:
            return tensor
        exact, half = TensorId(f"{tensor}.exact"), TensorId(f"{tensor}.half")
        spec = self._graph.spec(tensor)
        self.specs |= {exact: spec, half: TensorSpec(self._dtype, spec.shape)}
        for source, target, dtype in ((exact, half, self._dtype), (half, tensor, np.float32)):
            to = {"to": helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}
            casts.append(OperatorNode(f"{target}.cast", "Cast", "", 13, to, (source,), (target,)))
        return exact


def showing_sources(graph: ExecutionGraph, choice: Choice) -> ExecutionGraph:
    """Return the graph with what the choice is made from as further outputs."""
    known = (*graph.outputs, *graph.inputs)
    sources = [tensor for tensor in choice.sources if tensor not in known]
    return replace(graph, outputs=(*graph.outputs, *sources))


def choosing_part(graph: ExecutionGraph, choice: Choice) -> ExecutionGraph:
    """Return the graph from there on."""
    reads = {tensor for node in choice.operators for tensor in node.reads}
    written = {tensor for node in choice.operators for tensor in node.outputs if tensor}
    return ExecutionGraph.build(
        name=graph.name,
        operators=choice.operators,
        specs={tensor: graph.spec(tensor) for tensor in sorted(reads | written)},
        constants={t: graph.constants[t] for t in sorted(reads) if t in graph.constants},
        inputs=choice.sources,
        outputs=choice.outputs,
        lengths={t: axes for t, axes in graph.lengths.items() if t in written},
    )


def hold_choice(
    outputs: dict[str, dict[str, Any]],
    part: ExecutionGraph,
    arithmetic: Arithmetic,
    requests: Sequence[Mapping[str, np.ndarray]],
    found: Results,
    cpu: DeviceContext,
) -> None:
    """Judge what was chosen by what the CPU chooses from the same."""
    given = [
        {each: (request | result)[each] for each in part.inputs}
        for request, result in zip(requests, found, strict=True)
    ]
    chosen = run(part, cpu, given, "fp32")
    of_part = [{name: each[name] for name in chosen[0]} for each in found]
    for name, row in differences(arithmetic, of_part, chosen).items():
        alike = {key: value for key, value in outputs[name].items() if key == "rows_alike"}
        outputs[name] = row | alike


def differences(
    arithmetic: Arithmetic, found: Results, expected: Results
) -> dict[str, dict[str, Any]]:
    """Return how far each output is, of all requests together, and whether its bits repeat."""
    outputs = {}
    for name in expected[0]:
        pairs = [(one[name], other[name]) for one, other in zip(found, expected, strict=True)]
        unequal = [pair for pair in pairs if pair[0].shape != pair[1].shape]
        # Together: one number alone has no deviation to compare with. Lengths may differ.
        one, other = (
            np.concatenate(list(map(np.ravel, each))) for each in zip(*pairs, strict=True)
        )
        difference = compare(*(unequal[0] if unequal else (one, other)), arithmetic)
        outputs[name] = {
            **{key: _as_json(value) for key, value in asdict(difference).items()},
            "arithmetic": arithmetic.name,
            "same_bits": found[0][name].tobytes() == found[-1][name].tobytes(),
            "passed": difference.passed,
        }
    return outputs


def match_rows(
    outputs: dict[str, dict[str, Any]], arithmetic: Arithmetic, found: Results, expected: Results
) -> None:
    """Note of outputs whose number of rows differs which part of the rows is alike."""
    names = [name for name, each in outputs.items() if each["failure"].startswith("expected shape")]
    if not names:
        return
    alike = most = 0
    for each in zip(found, expected, strict=True):
        if any(one[name].ndim == 0 for one in each for name in names):
            return
        ours, theirs = (
            np.hstack([one[name].reshape(len(one[name]), -1) for name in names]) for one in each
        )
        if ours.shape[1] != theirs.shape[1] or not theirs.size:
            return
        allowed = arithmetic.tolerance * theirs.std(axis=0)
        near = (abs(ours[:, None] - theirs[None]) <= allowed).all(axis=2)
        alike += min(near.any(axis=0).sum(), near.any(axis=1).sum())
        most += max(near.shape)
    for name in names:
        outputs[name]["rows_alike"] = round(float(alike / most), 4)


def hold_against(outputs: dict[str, dict[str, Any]], stored: dict[str, dict[str, Any]]) -> None:
    """Note of outputs that are too far how far rounding alone takes them, and if that is as far."""
    in_norm, farthest = STORED_TIMES
    for name, output in outputs.items():
        if output["passed"]:
            continue
        by_rounding = {key: stored[name][key] for key in ("relative", "max_absolute")}
        output["by_rounding_alone"] = by_rounding
        figures = (*by_rounding.values(), output["relative"], output["max_absolute"])
        output["as_far_as_rounding"] = (
            None not in figures
            and output["relative"] <= in_norm * by_rounding["relative"]
            and output["max_absolute"] <= farthest * by_rounding["max_absolute"]
        )


def _as_json(value: Any) -> Any:
    """Return a figure; None for what can not be said."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rows(
    models: Sequence[Model], precisions: Sequence[str], device: DeviceContext, cpu: DeviceContext
) -> Iterator[dict[str, Any]]:
    """Yield a row for each model and precision."""
    for model in models:
        if model.missing_package:
            package = model.missing_package
            yield {"model": model.name, "skipped": f"package `{package}` is not installed"}
            continue
        graph = model.graph()
        requests = requests_of(graph, model.name)
        choice = choice_of(graph)
        whole = graph if choice is None else showing_sources(graph, choice)
        expected = run(whole, cpu, requests, "fp32")
        for precision in precisions:
            begin = time.perf_counter()
            arithmetic = arithmetic_of(graph, precision)
            found = run(whole, device, requests, precision)
            outputs = differences(arithmetic, found, expected)
            match_rows(outputs, arithmetic, found, expected)
            if choice is not None and not all(each["passed"] for each in outputs.values()):
                part = choosing_part(graph, choice)
                hold_choice(outputs, part, arithmetic, requests, found, cpu)
            if precision in ROUNDED and not all(each["passed"] for each in outputs.values()):
                in_half = stored_in_half(whole, ROUNDED[precision])
                stored = run(in_half, cpu, requests, "fp32")
                hold_against(outputs, differences(arithmetic, stored, expected))
            yield {
                "model": model.name,
                "precision": precision,
                "outputs": outputs,
                "seconds": round(time.perf_counter() - begin, 2),
                "passed": all(each["passed"] and each["same_bits"] for each in outputs.values()),
            }


def main(arguments: list[str] | None = None) -> int:
    """Compare, print, and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="words of names; default: all")
    parser.add_argument("--networks", type=Path, metavar="FOLDER", help="compare these instead")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=("fp32", "fp16"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record here")
    options = parser.parse_args(arguments)
    manifest = ZOO
    if options.networks is not None:
        tool = Path(__file__).with_name("make_networks.py")
        subprocess.run([sys.executable, tool, options.networks], check=True, stdout=sys.stderr)
        manifest = options.networks.resolve() / "networks.toml"
    models = [
        model
        for model in listed(manifest)
        if not options.models or any(word in model.name for word in options.models)
    ]
    found: list[dict[str, Any]] = []
    clock = SystemClock()
    threads = len(os.sched_getaffinity(0))
    with (
        open_device(options.device, clock=clock).context as device,
        open_device("cpu", clock=clock, threads=threads).context as cpu,
    ):
        for row in rows(models, options.precisions, device, cpu):
            found.append(row)
            print(json.dumps(row), flush=True)
            if options.json:
                report = {
                    "date": datetime.now(UTC).isoformat(timespec="seconds"),
                    "command": " ".join(["python", *sys.argv]),
                    "device": device.description.model,
                    "versions": {
                        "aegis_pipe": __version__,
                        **dict(device.description.library_versions),
                    },
                    "passed": all(each.get("passed", True) for each in found),
                    "rows": found,
                }
                options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 0 if all(each.get("passed", True) for each in found) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AegisError as error:
        sys.exit(f"error: {error}")
