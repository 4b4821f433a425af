"""Measures how fast a manifest's models answer, as those who submit requests see it.

    alone       one request at a time, from `submit` to its result
    saturated   so many requests under way that no stream waits for the next one
    together    all models at once, each a request at a time
    peer        ONNX Runtime with the same file, inputs and threads, a request at a time, in turns
                with `alone`, so that whatever the machine does happens to both

Models run as the manifest says, but nobody is late: deadlines and pipelines are left out.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np

from aegis_pipe.app import Runtime, open_pipeline
from aegis_pipe.clock import Clock
from aegis_pipe.deployment_builder import model_orders
from aegis_pipe.device.protocols import DeviceDescription
from aegis_pipe.errors import AegisError, InvalidInputError, PermanentError
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.manifest.model import Manifest, ModelSection, TelemetrySection
from aegis_pipe.reference_model import read_reference_model

ONNXRUNTIME = "onnxruntime"
WARM_UP = 5
"""Requests of each kind that are run first and not counted."""
TURNS = 8
"""Turns that this runtime and its peer take."""

Say = Callable[[str], None]
Request = Callable[[], object]


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """What to measure, and how much."""

    requests: int
    """Of each model in each measurement."""
    limit_ns: int
    """Longest time for each of these measurements."""
    models: tuple[str, ...] = ()
    """Empty: all of the manifest."""
    seed: int = 0
    """Of the inputs."""
    beside: str | None = None
    """`ONNXRUNTIME`, or nobody."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """How long requests took, one after the other."""

    requests: int
    p50_ns: int
    p99_ns: int
    min_ns: int
    max_ns: int

    @classmethod
    def of(cls, times_ns: Sequence[int]) -> Self:
        """Sum up at least one; percentiles by nearest rank."""
        ranked = sorted(times_ns)
        p50_ns, p99_ns = (ranked[math.ceil(q * len(ranked)) - 1] for q in (0.5, 0.99))
        return cls(len(ranked), p50_ns, p99_ns, ranked[0], ranked[-1])


@dataclass(frozen=True, slots=True)
class ModelBenchmark:
    """One model's figures."""

    model: str
    precision: str
    alone: Latencies
    outstanding: int
    """Requests under way in `saturated_per_s`."""
    saturated_per_s: float
    together: Latencies | None
    """None of a single model."""
    peer: Latencies | None
    peer_problem: str
    """Why there are no times of the peer; empty if there are, or nobody asked."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The figures of a manifest's models, in its order."""

    device: DeviceDescription
    streams: int
    models: tuple[ModelBenchmark, ...]


def run_benchmark(manifest: Manifest, options: BenchmarkOptions, say: Say) -> Benchmark:
    """Open the manifest and measure.

    Raises InvalidInputError for a model that is not there, PermanentError for a peer that is not
    installed, and what opening and requests raise.
    """
    names = _chosen(manifest, options.models)
    if options.beside is not None:
        _check_installed(options.beside)
    with open_pipeline(_quiet(manifest), write_line=say) as runtime:
        bench = _Bench(manifest, runtime, options)
        alone = {}
        for name in names:
            alone[name] = bench.alone(name)
            say(f"{name}: p50 {alone[name].alone.p50_ns / 1e6:.3f} ms")
        together = bench.together(names) if len(names) > 1 else {}
        models = [
            dataclasses.replace(each, together=together.get(name)) for name, each in alone.items()
        ]
        return Benchmark(runtime.device, runtime.stream_count, tuple(models))


def _chosen(manifest: Manifest, names: Sequence[str]) -> list[str]:
    known = [model.name for model in manifest.models]
    for name in names:
        if name not in known:
            raise InvalidInputError(
                f"the manifest has no model `{name}`",
                hint=f"it has {', '.join(f'`{each}`' for each in known)}",
            )
    return [name for name in known if not names or name in names]


def _check_installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise PermanentError(
            f"`{package}` is not installed", context="beside", hint=f"`pip install {package}`"
        )


def _quiet(manifest: Manifest) -> Manifest:
    return dataclasses.replace(
        manifest,
        telemetry=TelemetrySection(),
        scheduler=dataclasses.replace(manifest.scheduler, admission="off", record=False),
        models=tuple(dataclasses.replace(each, deadline_ns=None) for each in manifest.models),
        pipelines=(),
        serve=None,
    )


class _Bench:
    """Drives a runtime through the measurements."""

    def __init__(self, manifest: Manifest, runtime: Runtime, options: BenchmarkOptions) -> None:
        self._manifest = manifest
        self._runtime = runtime
        self._options = options
        self._sections = {section.name: section for section in manifest.models}

    def alone(self, name: str) -> ModelBenchmark:
        """Measure one model while no other runs."""
        inputs = self._inputs(name)
        ours = _Timed(lambda: self._runtime.infer(name, inputs), self._runtime.clock)
        racing, problem = [ours], ""
        if self._options.beside is not None:
            try:
                peer = self._peer(name, inputs)
                peer()
                racing.append(_Timed(peer, self._runtime.clock))
            except Exception as error:  # So does reading the file for it.
                problem = _reason(error)
        self._race(racing)
        times = [Latencies.of(each.times_ns) for each in racing]
        section = self._sections[name]
        outstanding = self._outstanding(section)
        return ModelBenchmark(
            name,
            section.precision,
            times[0],
            outstanding,
            self._saturated_per_s(name, inputs, outstanding),
            None,
            times[1] if len(times) > 1 else None,
            problem,
        )

    def together(self, names: Sequence[str]) -> dict[str, Latencies]:
        """Measure all models at once, until each has answered as often as was asked for."""
        options, clock = self._options, self._runtime.clock
        timed = {name: self._timed(name) for name in names}
        waiting, is_over = threading.Semaphore(0), threading.Event()

        def go_on(each: _Timed) -> None:
            try:
                until_ns = clock.now_ns() + options.limit_ns
                while not each.times_ns or not (is_over.is_set() or clock.now_ns() >= until_ns):
                    each.request()
                    if len(each.times_ns) == options.requests:
                        waiting.release()
            finally:
                waiting.release()

        with ThreadPoolExecutor(len(names), "aegis-bench") as pool:
            going = [pool.submit(go_on, each) for each in timed.values()]
            for _ in names:
                waiting.acquire()
            is_over.set()
        for each in going:
            each.result()
        return {name: Latencies.of(each.times_ns) for name, each in timed.items()}

    def _timed(self, name: str) -> _Timed:
        inputs = self._inputs(name)
        return _Timed(lambda: self._runtime.infer(name, inputs), self._runtime.clock)

    def _inputs(self, name: str) -> dict[str, np.ndarray]:
        wanted = self._runtime.models[name].inputs
        generated = generate_inputs(self._runtime.graphs[name], self._options.seed)
        return {tensor: array for tensor, array in generated.items() if tensor in wanted}

    def _race(self, racing: Sequence[_Timed]) -> None:
        """Have all take turns, each as many requests in all as were asked for."""
        options, clock = self._options, self._runtime.clock
        for each in racing:
            for _ in range(WARM_UP):
                each.request()
            each.times_ns.clear()
        until_ns = clock.now_ns() + options.limit_ns * len(racing)
        for turn in range(TURNS):
            for each in racing:
                for _ in range(_share(options.requests, turn)):
                    if each.times_ns and clock.now_ns() >= until_ns:
                        break
                    each.request()

    def _outstanding(self, section: ModelSection) -> int:
        """Return how many requests keep every stream busy, and fill its batches."""
        manifest = self._manifest
        batch = 1 if section.batching is None else section.batching.max_batch
        wanted = (manifest.streams.count * manifest.streams.in_flight + 1) * batch
        return min(wanted, manifest.scheduler.queue_capacity, section.queue_capacity or wanted)

    def _saturated_per_s(
        self, name: str, inputs: Mapping[str, np.ndarray], outstanding: int
    ) -> float:
        runtime, options, clock = self._runtime, self._options, self._runtime.clock
        under_way = deque(runtime.submit(name, inputs) for _ in range(outstanding))
        begin_ns = clock.now_ns()
        done = 0
        while done < max(options.requests, outstanding):
            if done and clock.now_ns() >= begin_ns + options.limit_ns:
                break
            under_way.popleft().result()
            done += 1
            under_way.append(runtime.submit(name, inputs))
        spent_ns = clock.now_ns() - begin_ns
        for future in under_way:
            future.result()
        return done * 1e9 / spent_ns

    def _peer(self, name: str, inputs: Mapping[str, np.ndarray]) -> Request:
        """Return a request of ONNX Runtime's for the same file; raises what that raises."""
        import onnxruntime

        (order,) = (each for each in model_orders(self._manifest) if each.name == name)
        model = read_reference_model(order, inputs)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self._manifest.streams.threads
        settings.log_severity_level = 4
        # From the file where it can be: it may be larger than one message.
        source = model.proto.SerializeToString() if model.edited else str(model.path)
        session = onnxruntime.InferenceSession(
            source, settings, providers=[self._provider(onnxruntime.get_available_providers())]
        )
        feeds, outputs = dict(model.inputs), model.output_names

        def request() -> object:
            try:
                return session.run(outputs, feeds)
            except Exception as error:  # Others' code: it raises what it likes.
                raise PermanentError(
                    _reason(error), context=ONNXRUNTIME, hint="measure without it"
                ) from error

        return request

    def _provider(self, available: Sequence[str]) -> str | tuple[str, dict[str, int]]:
        """Return what runs on the same device."""
        kind, _, index = self._runtime.device.name.partition(":")
        provider = f"{kind.upper()}ExecutionProvider"
        if provider not in available:
            raise PermanentError(
                f"this ONNX Runtime has no {provider}", hint="`pip install onnxruntime-gpu`"
            )
        return (provider, {"device_id": int(index)}) if index else provider


class _Timed:
    """A request, again and again."""

    def __init__(self, request: Request, clock: Clock) -> None:
        self._request = request
        self._clock = clock
        self.times_ns: list[int] = []

    def request(self) -> None:
        """Make one and keep how long it took."""
        begin_ns = self._clock.now_ns()
        self._request()
        self.times_ns.append(self._clock.now_ns() - begin_ns)


def _share(requests: int, turn: int) -> int:
    """Return how many of the requests are one turn's."""
    return requests * (turn + 1) // TURNS - requests * turn // TURNS


def _reason(error: Exception) -> str:
    if isinstance(error, AegisError):
        return error.message
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0]}"
