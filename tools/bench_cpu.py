"""Time models on the CPU beside ONNX Runtime, interleaved in one process.

    python tools/bench_cpu.py --json cpu.json                  light models and the zoo
    python tools/bench_cpu.py --threads 1 --batch 1 voice ocr  those whose name contains a word
    python tools/bench_cpu.py --networks FOLDER                also exported networks; makes them

Both sides get the same inputs and return fresh arrays; ONNX Runtime runs with all optimisations.
They take turns in short blocks, so that whatever else the machine does falls on both; a turn begins
when the other side's threads have come to rest. A ratio above 1 says that AegisPipe is faster.
Whether outputs agree is what `aegis-pipe verify` tells.
Loading is timed from the file to the first result, a few times each; memory is what activations and
scratch take: our plan's peak, and what ONNX Runtime's arena holds without weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx.backend.test
import onnxruntime
from onnxruntime_arena import arena_bytes

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.errors import AegisError
from aegis_pipe.execution.input_binding import LoadOptions, fixed_inputs
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.execution.model_inspection import inspect_model
from aegis_pipe.execution.model_loader import ModelLoader
from aegis_pipe.execution.onnx_reader import read_onnx
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.manifest.model import PACKAGE_SCHEME, resolve_path

ZOO = Path(__file__).resolve().parents[1] / "manifests" / "zoo.toml"
MAKE_NETWORKS = Path(__file__).with_name("make_networks.py")
LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"

BLOCK_S = 0.02
"""A turn lasts at least one run, and no longer than this if runs are shorter."""
PAUSE_S = 0.005
"""Between turns at least, see `rest`."""
ROUNDS_MIN = 3
LOADS = 3
"""How often each side loads; the median counts."""

Run = Callable[[], object]


@dataclass(frozen=True)
class Model:
    """A file with what it needs to be loaded."""

    name: str
    path: Path
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bind: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Run times of one side, in milliseconds."""

    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    runs: int
    load_ms: float
    """From the file to the first result."""

    @property
    def spread(self) -> float:
        """Distance of the quartiles by the median."""
        return (self.upper_quartile_ms - self.lower_quartile_ms) / self.median_ms


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    model: str
    batch: int
    threads: int
    ours: Timing
    onnxruntime: Timing
    ratio: float
    weight_bytes: int
    planned_peak_bytes: int
    """Activations and workspaces at their peak."""
    onnxruntime_arena_bytes: int
    """What ONNX Runtime's arena holds for the same."""
    reference_kernels: int


def main() -> int:
    """Parse the arguments, run, print, write; 1 if a model could not be run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="words of names; default: all that are here")
    parser.add_argument("--manifest", type=Path, help="time this manifest's models instead")
    parser.add_argument(
        "--networks", type=Path, help="folder of tools/make_networks.py; what is missing is made"
    )
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=3.0, help="per line, both sides together")
    arguments = parser.parse_args()
    models = [
        model
        for model in candidates(arguments.manifest, arguments.networks)
        if not arguments.models or any(word in model.name for word in arguments.models)
    ]
    results: list[Result] = []
    failures: dict[str, str] = {}
    print(HEADER)
    for threads in arguments.threads:
        with open_device("cpu", clock=SystemClock(), threads=threads).context as context:
            for model, batch in batched(models, arguments.batch):
                try:
                    result = measure(model, batch, threads, context, arguments.seconds)
                except AegisError as error:
                    failures[f"{model.name}, batch {batch}, threads {threads}"] = str(error)
                    print(f"{model.name:24} {error}")
                    continue
                results.append(result)
                print(line(result), flush=True)
            machine = context.description
    print_means(results)
    if arguments.json:
        report = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", *sys.argv]),
            "machine": {
                "processor": machine.model,
                "cores": machine.compute_units,
                # Well above 1 per core: the figures are of a machine that was busy otherwise.
                "load_average": os.getloadavg(),
            },
            "versions": {
                "python": sys.version.split()[0],
                "onnxruntime": onnxruntime.__version__,
                "onnx": onnx.__version__,
                **dict(machine.library_versions),
            },
            "results": [asdict(result) for result in results],
            "failures": failures,
        }
        arguments.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return 1 if failures else 0


def candidates(manifest: Path | None, networks: Path | None) -> Iterator[Model]:
    """Yield a manifest's models or, without one, light models and zoo; then the networks."""
    if manifest is None:
        yield from (Model(path.stem, path) for path in sorted(LIGHT.glob("*.onnx")))
    yield from listed(manifest or ZOO)
    if networks is not None:
        subprocess.run([sys.executable, MAKE_NETWORKS, networks], check=True)
        yield from listed(networks / "networks.toml")


def listed(source: Path) -> Iterator[Model]:
    """Yield the models of a manifest, those of packages that are not here left out."""
    for table in tomllib.loads(source.read_text(encoding="utf-8"))["models"]:
        package = table["path"].removeprefix(PACKAGE_SCHEME).partition("/")[0]
        if table["path"].startswith(PACKAGE_SCHEME) and not importlib.util.find_spec(package):
            continue
        shapes = {name: tuple(shape) for name, shape in table.get("shapes", {}).items()}
        path = resolve_path(table["path"], source.parent)
        yield Model(table["name"], path, shapes, table.get("bind", {}))


def batched(models: Sequence[Model], batches: Sequence[int]) -> Iterator[tuple[Model, int]]:
    """Yield every model with every batch size that it allows."""
    for model in models:
        for batch in batches:
            shapes = batch_shapes(model, batch)
            if shapes is not None:
                yield Model(model.name, model.path, shapes, model.bind), batch


def batch_shapes(model: Model, batch: int) -> Mapping[str, tuple[int, ...]] | None:
    """Return the shapes for a batch: it takes each input's first open dimension of size 1."""
    if batch == 1:
        return model.shapes
    stated = inspect_model(model.path).inputs
    shapes = {}
    for name, shape in model.shapes.items():
        open_ones = [
            axis
            for axis, size in enumerate(shape)
            if size == 1 and not isinstance(stated[name].shape[axis], int)
        ]
        if not open_ones:
            return None
        axis = open_ones[0]
        shapes[name] = (*shape[:axis], batch, *shape[axis + 1 :])
    return shapes or None


def measure(
    model: Model, batch: int, threads: int, context: DeviceContext, seconds: float
) -> Result:
    """Load a model on both sides and time them in turns."""
    options = LoadOptions(model.shapes, model.bind, model.name)
    graph = ModelLoader().load(model.path, options)
    inputs = generate_inputs(graph, 0)
    bound = fixed_inputs(read_onnx(model.path.read_bytes(), model.path.parent).graph, options)
    feeds: dict[str, np.ndarray] = {**inputs, **bound[1]}
    with closing(context.create_stream(0)) as stream:

        def loaded() -> StandaloneGraph:
            graph = ModelLoader().load(model.path, options)
            return StandaloneGraph(graph, context, stream, SystemClock())

        def load_and_run() -> None:
            with loaded() as standalone:
                standalone.run(inputs)

        def session() -> onnxruntime.InferenceSession:
            return onnxruntime.InferenceSession(model.path, session_options(threads))

        sides: tuple[tuple[Run, list[float]], ...] = (
            (load_and_run, []),
            (lambda: session().run(None, feeds), []),
        )
        for _ in range(LOADS):
            for run, times in sides:
                times.append(seconds_of(run))
        our_load_s, their_load_s = (statistics.median(times) for _, times in sides)
        with loaded() as standalone:
            other_side = session()
            ours, theirs = take_turns(
                lambda: standalone.run(inputs), lambda: other_side.run(None, feeds), seconds
            )
            compiled = standalone.compiled
    one, other = timing(ours, our_load_s), timing(theirs, their_load_s)
    return Result(
        model=model.name,
        batch=batch,
        threads=threads,
        ours=one,
        onnxruntime=other,
        ratio=other.median_ms / one.median_ms,
        weight_bytes=compiled.weight_bytes,
        planned_peak_bytes=compiled.plan.peak_bytes,
        onnxruntime_arena_bytes=arena_of(model.path, feeds, threads),
        reference_kernels=len(compiled.reference_steps),
    )


def arena_of(path: Path, feeds: Mapping[str, np.ndarray], threads: int) -> int:
    """Return what ONNX Runtime's arena holds for these inputs."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.npz"
        np.savez(file, **feeds)
        return arena_bytes(path, file, threads)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return ONNX Runtime's defaults for so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def take_turns(ours: Run, theirs: Run, seconds: float) -> tuple[list[float], list[float]]:
    """Return the seconds of single runs of both sides, after a run each to warm up."""
    sides: tuple[tuple[Run, list[float]], ...] = ((ours, []), (theirs, []))
    counts = [block_length(run) for run, _ in sides]
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < ROUNDS_MIN or time.perf_counter() < end:
        for (run, times), count in zip(sides, counts, strict=True):
            rest()
            # The first of a turn finds its data out of the caches; it does not count.
            if count > 1:
                run()
            times.extend(seconds_of(run) for _ in range(count))
        rounds += 1
    return sides[0][1], sides[1][1]


def rest() -> None:
    """Wait until no thread of this process runs any more.

    ONNX Runtime's idle threads spin for tens of milliseconds: a turn that began meanwhile would
    have one core less.
    """
    used = PAUSE_S
    while used > PAUSE_S / 4:
        before = time.process_time()
        time.sleep(PAUSE_S)
        used = time.process_time() - before


def block_length(run: Run) -> int:
    """Return how many runs fit into a turn."""
    run()
    return max(1, int(BLOCK_S / max(seconds_of(run), 1e-6)))


def seconds_of(run: Run) -> float:
    """Time one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def timing(seconds: list[float], load_s: float) -> Timing:
    """Summarise the runs of one side."""
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median * 1e3, lower * 1e3, upper * 1e3, len(seconds), load_s * 1e3)


HEADER = (
    f"{'model':24} {'batch':>5} {'thr':>3} {'ours ms':>9} {'+-':>5} {'ORT ms':>9} {'+-':>5} "
    f"{'ratio':>6} {'load ms':>8} {'ORT':>6} {'weights':>9} {'peak':>9} {'arena':>9}  "
    "reference kernels"
)


def line(result: Result) -> str:
    """Format a result."""
    ours, other = result.ours, result.onnxruntime
    return (
        f"{result.model:24} {result.batch:5} {result.threads:3} "
        f"{ours.median_ms:9.3f} {ours.spread:5.0%} {other.median_ms:9.3f} {other.spread:5.0%} "
        f"{result.ratio:6.2f} {ours.load_ms:8.0f} {other.load_ms:6.0f} "
        f"{result.weight_bytes / 2**20:5.1f} MiB {result.planned_peak_bytes / 2**20:5.1f} MiB "
        f"{result.onnxruntime_arena_bytes / 2**20:5.1f} MiB"
        f"  {result.reference_kernels or ''}"
    )


def print_means(results: Sequence[Result]) -> None:
    """Print the geometric means of the ratios by threads and batch, and of loading."""
    for threads, batch in sorted({(r.threads, r.batch) for r in results}):
        ratios = [r.ratio for r in results if (r.threads, r.batch) == (threads, batch)]
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        ahead = sum(ratio > 1 for ratio in ratios)
        print(
            f"threads {threads}, batch {batch}: geometric mean {mean:.2f}, "
            f"ahead on {ahead} of {len(ratios)}"
        )
    if results:
        loads = [result.onnxruntime.load_ms / result.ours.load_ms for result in results]
        mean = math.exp(statistics.fmean(map(math.log, loads)))
        smaller = sum(r.planned_peak_bytes <= r.onnxruntime_arena_bytes for r in results)
        print(
            f"loading: geometric mean {mean:.2f}; memory: planned peak within ONNX Runtime's "
            f"arena on {smaller} of {len(results)}"
        )


if __name__ == "__main__":
    sys.exit(main())
