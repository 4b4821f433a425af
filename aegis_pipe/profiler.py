"""Measures how long a manifest's models hold a stream, by running them as `up` would."""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from aegis_pipe.analysis.in_place import RequestTrace, holds_of
from aegis_pipe.analysis.profile import (
    ModelProfile,
    PairProfile,
    Profile,
    covering,
    grid,
    median,
    model_profile,
    pair_profile,
)
from aegis_pipe.analysis_builder import fingerprint_of
from aegis_pipe.app import Runtime, open_pipeline
from aegis_pipe.errors import AegisError, PermanentError
from aegis_pipe.events import Event, RequestFinished, SegmentFinished, StageFinished
from aegis_pipe.execution.capture import cut_into_segments
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.manifest.model import Manifest, TelemetrySection

WARM_UP = 5
"""Requests of each model that are run first and not counted."""
PAUSE_NS = 5_000_000
"""Rest before each of the requests that do not follow upon another."""
LONG_PAUSE_NS, LONG_EVERY = 20_000_000, 4
"""Rest before every so many of them: threads and caches are colder still."""
KERNEL_RUNS = 15
"""Requests of each model whose kernels are timed."""
MOST_IN_PLACE = 8192
"""Requests in place that a profile keeps."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """How much to measure."""

    quantile: float
    confidence: float
    samples: int
    """Requests of each model alone."""
    pair_samples: int
    limit_ns: int
    """Longest time for each of these measurements."""
    pipelines_ns: int
    """How long pipelines are run, for times in place and those of sources and transforms."""


@dataclass(slots=True, eq=False)
class _Request:
    stream: int = 0
    launches_ns: list[int] = field(default_factory=list)
    kernel_times: list[bytes] = field(default_factory=list)


class _Recorder:
    """A listener: every finished request as (arrival to start, time per segment).

    A segment holds its stream from its launch to the next segment's, the first one from the
    decision to start, the last one until the scheduler has seen its end: what the device does and
    what the host needs between two of them.
    """

    def __init__(self) -> None:
        self._open: defaultdict[int, _Request] = defaultdict(_Request)
        self.rows: defaultdict[str, list[tuple[int, ...]]] = defaultdict(list)
        self.wakes: defaultdict[str, list[int]] = defaultdict(list)
        self.host: defaultdict[str, list[int]] = defaultdict(list)
        self.kernels: defaultdict[str, list[list[int]]] = defaultdict(list)
        self.traces: list[RequestTrace] = []

    def __call__(self, event: Event) -> None:
        if type(event) is SegmentFinished:
            request = self._open[event.request_id]
            request.stream = event.stream
            request.launches_ns.append(event.launch_ns)
            request.kernel_times.append(event.kernel_times)
        elif type(event) is RequestFinished:
            request = self._open.pop(event.request_id, _Request())
            is_complete = event.outcome == "completed"
            starts_ns = (event.start_ns, *request.launches_ns[1:])
            if request.launches_ns:
                self.traces.append(
                    RequestTrace(event.model, request.stream, starts_ns, event.at_ns, is_complete)
                )
            if is_complete:
                edges = [*starts_ns, event.at_ns]
                self.rows[event.model].append(
                    tuple(end - first for first, end in itertools.pairwise(edges))
                )
                self.wakes[event.model].append(event.start_ns - event.arrival_ns)
                if all(request.kernel_times):
                    self._keep_kernels(event.model, b"".join(request.kernel_times))
        elif type(event) is StageFinished and event.kind in ("source", "transform"):
            name = "source" if event.kind == "source" else event.stage
            self.host[f"{event.pipeline}/{name}"].append(event.end_ns - event.start_ns)

    def _keep_kernels(self, model: str, stamps: bytes) -> None:
        self.kernels[model].append(own_times(np.frombuffer(stamps, np.int64).reshape(-1, 2)))

    def clear(self) -> None:
        """Forget what was measured so far."""
        for kept in (self.rows, self.wakes, self.host, self.kernels):
            kept.clear()
        self.traces.clear()


def own_times(times: np.ndarray) -> list[int]:
    """Return how long each kernel of int64[kernels, 2] ran that none before it did.

    Of branches that run side by side, time counts once, so that kernels add up to their segment.
    """
    starts, ends = times[:, 0], times[:, 1]
    before = np.maximum.accumulate(ends)[:-1]
    begins = np.concatenate([starts[:1], np.maximum(starts[1:], before)])
    own: list[int] = np.maximum(ends - begins, 0).tolist()
    return own


def measure_profile(manifest: Manifest, options: ProfileOptions, say: Say) -> Profile:
    """Run every model alone, beside each other one if there are several streams, and in place.

    In place is as `up` runs them: all pipelines with their sources, transforms and rates.
    """
    quiet = dataclasses.replace(
        manifest,
        telemetry=TelemetrySection(),
        scheduler=dataclasses.replace(manifest.scheduler, admission="off", record=False),
        models=tuple(
            dataclasses.replace(model, deadline_ns=None, streams=()) for model in manifest.models
        ),
        # What a sink would write is nobody's result.
        pipelines=tuple(dataclasses.replace(each, sinks=()) for each in manifest.pipelines),
        serve=None,
    )
    recorder = _Recorder()
    boundaries = _measured_boundaries(quiet, options, say)
    with open_pipeline(
        quiet, listeners=(recorder,), write_line=say, boundaries=boundaries
    ) as runtime:
        bench = _Bench(runtime, recorder, options, say)
        models = bench.alone()
        pairs = bench.pairs() if manifest.streams.count > 1 else ()
        host_ns = bench.pipelines() if manifest.pipelines else {}
        fingerprint = fingerprint_of(manifest, runtime.device)
    in_place = holds_of(recorder.traces) if manifest.pipelines and _runs_singly(manifest) else []
    rows: defaultdict[str, list[tuple[int, ...]]] = defaultdict(list)
    for each in in_place:
        rows[each.hold.model].append(each.segments_ns)
    return Profile(
        fingerprint,
        options.quantile,
        options.confidence,
        {name: covering(model, rows[name]) for name, model in models.items()},
        pairs,
        host_ns,
        # What others do to a model's times is measured in pairs.
        tuple(each.hold for each in in_place if not each.was_beside)[:MOST_IN_PLACE],
    )


def _runs_singly(manifest: Manifest) -> bool:
    """Return whether a stream has one request at a time: no batch, and nothing waiting in it."""
    return manifest.streams.in_flight == 1 and not any(each.batching for each in manifest.models)


def _measured_boundaries(
    manifest: Manifest, options: ProfileOptions, say: Say
) -> dict[str, tuple[int, ...]]:
    """Run every model in one piece, and cut it by the times of its kernels."""
    recorder = _Recorder()
    with open_pipeline(manifest, listeners=(recorder,), write_line=say, boundaries={}) as runtime:
        bench = _Bench(runtime, recorder, options, say)
        return {
            name: cut_into_segments(bench.kernels(name), manifest.streams.max_block_ns)
            for name in runtime.models
        }


class _Bench:
    """Drives a runtime through the measurements."""

    def __init__(
        self, runtime: Runtime, recorder: _Recorder, options: ProfileOptions, say: Say
    ) -> None:
        self._runtime = runtime
        self._recorder = recorder
        self._options = options
        self._say = say
        self._inputs = {
            name: {
                tensor: array
                for tensor, array in generate_inputs(graph, seed=0).items()
                if tensor in runtime.models[name].inputs
            }
            for name, graph in runtime.graphs.items()
        }

    def alone(self) -> dict[str, ModelProfile]:
        """Measure every model, a request at a time: upon its own kind, then in turns."""
        kernels, warm = {}, {}
        for model in self._runtime.models:
            kernels[model] = self.kernels(model)
            self._repeat(model, WARM_UP)
            self._recorder.clear()
            self._repeat(model, self._options.samples)
            warm[model] = self._rows(model)
        self._recorder.clear()
        self._in_turns(self._options.samples)
        return {model: self._profile(model, warm[model], kernels[model]) for model in warm}

    def _profile(
        self, model: str, warm: Sequence[Sequence[int]], kernels: Sequence[int]
    ) -> ModelProfile:
        cold = self._rows(model)
        profile = model_profile(
            model,
            warm,
            [row for number, row in enumerate(cold, 1) if number % LONG_EVERY],
            cold[LONG_EVERY - 1 :: LONG_EVERY],
            self._recorder.wakes[model],
            self._runtime.boundaries.get(model, ()),
            kernels,
            self._options.quantile,
            self._options.confidence,
        )
        self._say(
            f"{model}: p50 {median(profile.totals_ns) / 1e6:.3f} ms, "
            f"at most {profile.total.bound_ns / 1e6:.3f} ms ({len(warm)} requests)"
        )
        return profile

    def kernels(self, model: str) -> list[int]:
        """Measure the median of each of a model's kernel calls."""
        self._repeat(model, WARM_UP)
        self._recorder.clear()
        self._runtime.stamps_kernels = True
        self._repeat(model, KERNEL_RUNS)
        self._runtime.stamps_kernels = False
        return [median(column) for column in zip(*self._recorder.kernels[model], strict=True)]

    def pairs(self) -> tuple[PairProfile, ...]:
        """Measure each model while all other streams run another, or itself."""
        return tuple(
            self._pair(model, beside)
            for model in self._runtime.models
            for beside in self._runtime.models
        )

    def _pair(self, model: str, beside: str) -> PairProfile:
        # One's own requests and those of its double are told apart by nothing but who waits for
        # them: of a model beside itself, all are counted.
        background = _Background(
            self._runtime, beside, self._inputs[beside], self._runtime.stream_count - 1
        )
        with background:
            self._repeat(model, WARM_UP)
            self._recorder.clear()
            self._repeat(model, self._options.pair_samples)
            rows = self._rows(model)
        profile = pair_profile(
            model, beside, rows, self._options.quantile, self._options.confidence
        )
        self._say(f"{model} beside {beside}: p50 {profile.total_median_ns / 1e6:.3f} ms")
        return profile

    def pipelines(self) -> dict[str, tuple[int, ...]]:
        """Run the pipelines, also for the times that sources and transforms take."""
        self._recorder.clear()
        self._runtime.start_pipelines()
        self._runtime.join(self._options.pipelines_ns / 1e9, threading.Event())
        return {name: grid(times) for name, times in sorted(self._recorder.host.items())}

    def _rows(self, model: str) -> list[tuple[int, ...]]:
        rows = list(self._recorder.rows[model])
        if not rows:
            raise PermanentError(
                "no request came to its end",
                context=f"model `{model}`",
                hint="generated inputs may not suit it; `aegis-pipe verify` shows what it raises",
            )
        return rows

    def _repeat(self, model: str, count: int) -> None:
        clock = self._runtime.clock
        end_ns = clock.now_ns() + self._options.limit_ns
        for done in range(count):
            if done and clock.now_ns() >= end_ns:
                return
            self._runtime.infer(model, self._inputs[model])

    def _in_turns(self, rounds: int) -> None:
        """Run every model once a round, each after a pause and after the one before it."""
        clock, nobody = self._runtime.clock, threading.Event()
        end_ns = clock.now_ns() + self._options.limit_ns * len(self._runtime.models)
        for number in range(1, rounds + 1):
            if number > LONG_EVERY and clock.now_ns() >= end_ns:
                return
            pause_ns = PAUSE_NS if number % LONG_EVERY else LONG_PAUSE_NS
            for model in self._runtime.models:
                clock.wait_until(clock.now_ns() + pause_ns, nobody)
                self._runtime.infer(model, self._inputs[model])


class _Background:
    """Keeps some streams busy with one model for the length of a block."""

    def __init__(
        self, runtime: Runtime, model: str, inputs: Mapping[str, np.ndarray], streams: int
    ) -> None:
        self._submit = partial(runtime.submit, model, inputs)
        self._streams = streams
        self._ended: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._going_on = True

    def __enter__(self) -> None:
        for _ in range(self._streams):
            self._next()

    def _next(self, done: Future[dict[str, np.ndarray]] | None = None) -> None:
        if not self._going_on:
            self._ended.put(True)
            return
        try:
            self._submit().add_done_callback(self._next)
        except AegisError:
            self._ended.put(True)

    def __exit__(self, *exc: object) -> None:
        self._going_on = False
        for _ in range(self._streams):
            self._ended.get()
