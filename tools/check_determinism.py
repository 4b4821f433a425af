"""Counts results that are not the same bits: a thousand requests of each model in every way.

    python tools/check_determinism.py --networks FOLDER --json FILE       on a GPU
    python tools/check_determinism.py --device cpu --requests 20 gru      a quick look

Three inputs take turns, so that what a request finds of the one before is seen; what each of them
gives must be what it gave at first, to the bit:

    alone            each request after the result of the one before, on one stream
    stamped          the same with a stamp between kernels
    queued           as many under way as there are streams, and more waiting; with two streams
                     segments are short, and two of them are in flight
    beside another   the other streams run BERT-base in batches of 8 meanwhile, one after another
                     (on the CPU the LSTM)
    eager            kernels launched one by one, each once the one before has ended; nothing is
                     captured (CUDA only)

Networks are those of tools/make_networks.py (FOLDER is filled if they are not there), on the CPU in
fp32. Exit status 1 if any result differs, if the inputs of a model do not all give something else
(then nothing would be seen), or if the other model did not run beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from aegis_pipe import Runtime, __version__, open_pipeline
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceDescription
from aegis_pipe.device.registry import open_device
from aegis_pipe.errors import AegisError
from aegis_pipe.events import Event, SegmentFinished
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.standalone import StandaloneGraph

INPUTS = 3
OTHER = "other"
OTHERS_PER_STREAM = 2
"""Of the other model's requests, at any time: one of them waits whenever a stream is free."""
MANIFEST = """
manifest_version = 1
name = "determinism"
[device]
kind = "{device}"
[scheduler]
policy = "fifo"
[streams]
count = {streams}
max_block = "{max_block}"
in_flight = {in_flight}
"""
MODEL = """
[[models]]
name = "{name}"
path = "{networks}/{network}.onnx"
precision = "{precision}"
shapes = {{ {shapes} }}
"""
_IDS = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (1, 128))


@dataclass(frozen=True)
class Model:
    """A network in a precision."""

    name: str
    network: str
    precision: str
    shapes: Mapping[str, tuple[int, ...]]

    def table(self, networks: Path) -> str:
        """Return its part of a manifest."""
        shapes = ", ".join(f"{name} = {list(shape)}" for name, shape in self.shapes.items())
        return MODEL.format(
            name=self.name,
            networks=networks,
            network=self.network,
            precision=self.precision,
            shapes=shapes,
        )

    def graph(self, networks: Path) -> ExecutionGraph:
        """Load it."""
        options = LoadOptions(self.shapes, {}, self.name)
        return ModelLoader().load(networks / f"{self.network}.onnx", options)


_IMAGE = {"image": (1, 3, 224, 224)}
_SOUND = {"features": (1, 100, 80)}
MODELS = (
    Model("resnet50", "resnet50", "fp16", _IMAGE),
    Model("bert-base", "bert-base", "fp16", _IDS),
    Model("resnet50-qdq", "resnet50-qdq", "fp32", _IMAGE),
    Model("gru", "gru", "fp32", _SOUND),
    Model("detector", "detector", "fp16", {"image": (1, 3, 320, 320)}),
)
BESIDE = {
    "cpu": Model(OTHER, "lstm", "fp32", _SOUND),
    "cuda": Model(OTHER, "bert-base", "fp16", dict.fromkeys(_IDS, (8, 128))),
}


@dataclass(frozen=True)
class Setting:
    """Streams, and how models are cut on them."""

    streams: int
    max_block: str
    in_flight: int


SETTINGS = (Setting(1, "1 h", 1), Setting(2, "100 us", 2), Setting(4, "1 h", 1))


class Expected:
    """What each input of each model gave at first."""

    def __init__(self) -> None:
        self._results: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def differs(self, model: str, number: int, result: dict[str, np.ndarray]) -> bool:
        """Return whether request `number` has other bits than the first with its input had."""
        first = self._results.setdefault((model, number % INPUTS), result)
        return any(first[name].tobytes() != result[name].tobytes() for name in first)

    def tell_apart(self, model: str) -> bool:
        """Return whether inputs have results that are numbers, and not the same ones."""
        results = [self._results[model, at] for at in range(INPUTS)]
        found = {b"".join(each.tobytes() for each in result.values()) for result in results}
        return len(found) == INPUTS and all(
            bool(np.isfinite(array).all()) for result in results for array in result.values()
        )


class Overlap:
    """Counts the segments of a model that ran while another model's did on another stream."""

    def __init__(self) -> None:
        self._segments: list[SegmentFinished] = []

    def listen(self, event: Event) -> None:
        """Keep what segments there were."""
        if isinstance(event, SegmentFinished):
            self._segments.append(event)

    def take(self, model: str) -> tuple[int, int]:
        """Return how many ran beside another model, and how many there were, since last time."""
        segments, self._segments = self._segments, []
        segments.sort(key=lambda each: each.start_ns)
        others: deque[SegmentFinished] = deque()
        own: deque[SegmentFinished] = deque()
        beside: set[int] = set()
        for each in segments:
            mine, theirs = (own, others) if each.model == model else (others, own)
            mine.append(each)
            running = [one for one in theirs if one.end_ns > each.start_ns]
            theirs.clear()
            theirs.extend(running)
            for one in running:
                if one.stream != each.stream:
                    beside.add(id(each if each.model == model else one))
        return len(beside), sum(each.model == model for each in segments)


def run_queued(
    runtime: Runtime,
    model: str,
    inputs: Sequence[Mapping[str, np.ndarray]],
    requests: int,
    outstanding: int,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield the results of requests in their order, so many under way or waiting at a time."""
    futures: deque[tuple[int, Any]] = deque()
    for number in range(requests):
        if len(futures) == outstanding:
            first, future = futures.popleft()
            yield first, future.result(timeout=60)
        futures.append((number, runtime.submit(model, inputs[number % INPUTS])))
    for first, future in futures:
        yield first, future.result(timeout=60)


@contextmanager
def another_running(
    runtime: Runtime, inputs: Mapping[str, np.ndarray], outstanding: int
) -> Iterator[None]:
    """Keep the other model's requests coming, several at a time."""
    places, stop = threading.Semaphore(outstanding), threading.Event()

    def feed() -> None:
        while not stop.is_set():
            places.acquire()
            runtime.submit(OTHER, inputs).add_done_callback(lambda _: places.release())

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield
    finally:
        stop.set()
        feeder.join()
        for _ in range(outstanding):
            places.acquire()


class Check:
    """What was counted so far."""

    def __init__(self, options: argparse.Namespace, networks: Path) -> None:
        self._options = options
        self._networks = networks
        self._expected = Expected()
        self._device: DeviceDescription | None = None
        self.rows: list[dict[str, Any]] = []
        self.loads_s: dict[int, float] = {}

    @property
    def has_failed(self) -> bool:
        """Whether anything is not as it must be."""
        return any(not row["passed"] for row in self.rows)

    def report(self) -> dict[str, Any]:
        """Return facts about the machine, and what was counted."""
        assert self._device is not None
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", *sys.argv]),
            "device": self._device.model,
            "cores": len(os.sched_getaffinity(0)),
            "versions": {"aegis_pipe": __version__, **dict(self._device.library_versions)},
            "passed": not self.has_failed,
            "requests": sum(row["requests"] for row in self.rows),
            "different": sum(row["different"] for row in self.rows),
            "load_s_by_streams": self.loads_s,
            "rows": self.rows,
        }

    def _told(self, row: dict[str, Any]) -> None:
        """Print a row that is whole, and write all there are: a run may be ended early."""
        print(json.dumps(row), flush=True)
        if self._options.json:
            text = json.dumps(self.report(), indent=1)
            self._options.json.write_text(text + "\n", "utf-8")

    def run_captured(self, setting: Setting, models: Sequence[Model]) -> None:
        """Run all models as a manifest on so many streams."""
        overlap = Overlap()
        text = MANIFEST.format(
            device=self._options.device,
            streams=setting.streams,
            max_block=setting.max_block,
            in_flight=setting.in_flight,
        )
        text += "".join(
            each.table(self._networks) for each in (*models, BESIDE[self._options.device])
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "determinism.toml")
            path.write_text(text, "utf-8")
            begin = time.perf_counter()
            with open_pipeline(path, listeners=[overlap.listen]) as runtime:
                self.loads_s[setting.streams] = time.perf_counter() - begin
                self._device = runtime.device
                for model in models:
                    self._run_model(runtime, model.name, setting, overlap)
                allocations = runtime.statistics().allocations_after_start
        assert allocations == 0, f"{allocations} device allocations after start"

    def _run_model(self, runtime: Runtime, model: str, setting: Setting, overlap: Overlap) -> None:
        graph, requests, streams = runtime.graphs[model], self._options.requests, setting.streams
        inputs = [generate_inputs(graph, seed) for seed in range(INPUTS)]

        def run(way: str, outstanding: int, *, is_beside: bool = False) -> None:
            overlap.take(model)
            results = run_queued(runtime, model, inputs, requests, outstanding)
            row = self._count(model, way, streams, results)
            beside, segments = overlap.take(model)
            row["segments_per_request"] = segments / requests
            if is_beside:
                row["segments_beside_another"] = beside / segments
                row["passed"] &= beside > 0
            self._told(row)

        if streams == 1:
            run("alone", 1)
            runtime.stamps_kernels = True
            run("stamped", 1)
            runtime.stamps_kernels = False
        run("queued", 4 * streams)
        if streams > 1:
            others = generate_inputs(runtime.graphs[OTHER], 0)
            with another_running(runtime, others, OTHERS_PER_STREAM * streams):
                run("beside another", streams - 1, is_beside=True)

    def run_eager(self, model: Model) -> None:
        """Launch every kernel by itself, once the one before has ended."""
        from aegis_pipe.device.cuda.stream import handle_of

        clock = SystemClock()
        requests = self._options.eager_requests
        graph = model.graph(self._networks)
        inputs = [generate_inputs(graph, seed) for seed in range(INPUTS)]
        with open_device(self._options.device, clock=clock).context as context:
            calls: list[Any] = []
            record: Callable[..., Any] = context.record

            def noting(own: Sequence[Any], *rest: Any, **options: Any) -> Any:
                calls[:] = own
                return record(own, *rest, **options)

            context.record = noting  # type: ignore[method-assign]
            stream: Any = context.create_stream(0)
            with StandaloneGraph(graph, context, stream, clock, model.precision) as standalone:
                launches = [launch for call in calls for launch in call.launches]

                def results() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
                    for number in range(requests):
                        standalone.write_inputs(inputs[number % INPUTS])
                        for launch in launches:
                            launch(handle_of(stream))
                            stream.synchronise()
                        yield number, standalone.read_outputs()

                row = self._count(model.name, "eager", 1, results())
                row["launches_per_request"] = len(launches)
                row["passed"] &= bool(launches)
            stream.close()
        self._told(row)

    def _count(
        self,
        model: str,
        way: str,
        streams: int,
        results: Iterator[tuple[int, dict[str, np.ndarray]]],
    ) -> dict[str, Any]:
        begin = time.perf_counter()
        requests = different = 0
        for number, result in results:
            requests += 1
            different += self._expected.differs(model, number, result)
        row: dict[str, Any] = {
            "model": model,
            "way": way,
            "streams": streams,
            "requests": requests,
            "different": different,
            "seconds": round(time.perf_counter() - begin, 3),
            "passed": different == 0 and self._expected.tell_apart(model),
        }
        self.rows.append(row)
        return row


def make_networks(folder: Path, names: Sequence[str]) -> None:
    """Write the networks that are not in the folder yet."""
    tool = Path(__file__).with_name("make_networks.py")
    subprocess.run([sys.executable, tool, folder, *names], check=True, stdout=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Check, print, and write what was counted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [model.name for model in MODELS]
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(names)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--networks", type=Path, metavar="FOLDER", help="where networks lie")
    parser.add_argument("--requests", type=int, default=1000, help="of each model in each way")
    parser.add_argument("--eager-requests", type=int, help="as many as the others, if not given")
    counts = [setting.streams for setting in SETTINGS]
    parser.add_argument("--streams", type=int, nargs="+", choices=counts, default=counts)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts here")
    options = parser.parse_args(arguments)
    if unknown := set(options.models) - set(names):
        parser.error(f"there is no model {min(unknown)}; there are {', '.join(names)}")
    options.eager_requests = options.eager_requests or options.requests
    models = [model for model in MODELS if not options.models or model.name in options.models]
    if options.device == "cpu":
        models = [replace(model, precision="fp32") for model in models]
    used = {each.network for each in (*models, BESIDE[options.device])}
    with tempfile.TemporaryDirectory() as folder:
        networks = (options.networks or Path(folder)).resolve()
        make_networks(networks, sorted(used))
        check = Check(options, networks)
        for setting in SETTINGS:
            if setting.streams in options.streams:
                check.run_captured(setting, models)
        if options.device == "cuda":
            for model in models:
                check.run_eager(model)
    found = check.report()
    print(f"{found['requests']} results, {found['different']} with other bits")
    return 1 if check.has_failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AegisError as error:
        sys.exit(f"error: {error}")
