"""The manifest as plain data: every key of the file, parsed and with its default filled in.

A field is named as its key, with the unit last where the file writes a unit: `memory_budget =
"64 MiB"` is `memory_budget_bytes`, `period = "33 ms"` is `period_ns`, `rate = "30/s"` is
`rate_per_s`. Meanings, units and ranges stand once, in `schemas/manifest.schema.json`, from
which the reference page is generated; a test holds the defaults here and there together.

Sections are values: compare them, replace parts with `dataclasses.replace`, write them back with
`aegis_pipe.manifest.writer.dump_manifest`. This module imports no layer and reads no file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from aegis_pipe.errors import ManifestError

PACKAGE_SCHEME = "package://"

Constant = bool | int | float | tuple["Constant", ...]
"""A value bound to a model input: a number, a bool, or nested sequences of them."""


@dataclass(frozen=True, slots=True)
class DeviceSection:
    """`[device]`: where the models run."""

    kind: Literal["cpu", "cuda", "auto"] = "cpu"
    index: int = 0
    memory_budget_bytes: int | None = None
    """Limit for everything planned on the device; None: what the device has."""
    staging_budget_bytes: int | None = None
    """Limit for host memory that inputs and outputs pass through; None: no limit."""
    memory_debug: Literal["off", "canary"] = "off"
    """`canary`: find what kernels write outside of their planned memory."""


@dataclass(frozen=True, slots=True)
class StreamsSection:
    """`[streams]`: how many requests run at once, and how long one may hold a stream."""

    count: int = 1
    threads: int = 1
    """Threads a stream of the CPU may use within one operator."""
    max_block_ns: int = 1_000_000
    """Longest stretch that can not be preempted; models are cut into segments to meet it."""
    affinity: Literal["any", "memory"] = "any"
    """`memory`: models with a `concurrency` are confined to as many streams."""
    sm: tuple[int, ...] = ()
    """Multiprocessors of a GPU that each stream has for itself; empty: all streams share all."""
    in_flight: int = 1
    """Most segments on a stream at once: what an urgent request may have to wait for."""
    real_time: int | None = None
    """Priority among the system's real-time threads; None: scheduled as any process."""


@dataclass(frozen=True, slots=True)
class SchedulerSection:
    """`[scheduler]`: who runs next."""

    policy: str = "priority"
    """`fifo`, `priority`, `fairness`, `edf` or `package.module:Class`."""
    queue_capacity: int = 256
    admission: Literal["off", "report", "enforce"] = "off"
    ageing_ns: int = 100_000_000
    """Waiting time that raises a request by one priority level; 0: waiting does not count."""
    drain_timeout_ns: int = 5_000_000_000
    record: bool = False
    """Keep arrivals and completions in `<manifest>.run`, for `aegis-pipe replay`."""


@dataclass(frozen=True, slots=True)
class BatchingSection:
    """`models.batching`: requests that run together."""

    max_batch: int
    window_ns: int = 0
    """Time that a request waits for others, if its deadline allows."""


@dataclass(frozen=True, slots=True)
class ModelSection:
    """One of `[[models]]`."""

    name: str
    path: str
    """As written; `Manifest.resolve` makes it a file."""
    sha256: str | None = None
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = "fp32"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bind: Mapping[str, Constant] = field(default_factory=dict)
    """Inputs that are constants from here on, and so no inputs of a request."""
    state: Mapping[str, str] = field(default_factory=dict)
    """Inputs that are an output of the model's last request, by input, and that output."""
    memory_budget_bytes: int | None = None
    priority: int = 0
    """Higher is more urgent."""
    weight: float = 1.0
    """Share of device time under the `fairness` policy, relative to the other models'."""
    period_ns: int | None = None
    """Shortest time between two requests, for admission."""
    deadline_ns: int | None = None
    """Time from arrival until the result is due."""
    late: Literal["drop", "run", "degrade"] = "drop"
    """What becomes of a request that is late."""
    degrade_to: str | None = None
    """The model that takes over late requests."""
    concurrency: int | None = None
    """Most requests that have started and are not over; None: as many as there are streams."""
    batching: BatchingSection | None = None
    queue_capacity: int | None = None
    """Most requests of this model that wait at once; None: the scheduler's capacity."""
    streams: tuple[int, ...] = ()
    """The streams it is confined to, from 0; empty: all."""

    @property
    def requests_at_once(self) -> int | None:
        """Most requests that are under way; with state, each needs the one before."""
        return 1 if self.state else self.concurrency


@dataclass(frozen=True, slots=True)
class ImagesSource:
    """Image files in name order: `image`, uint8 [height, width, channels], and `name`."""

    kind: ClassVar[str] = "images"
    outputs_known: ClassVar[tuple[str, ...]] = ("image", "name")

    path: str
    """A folder, or one image file."""
    pattern: str = "*"
    rate_per_s: float | None = None
    """None: as fast as the pipeline takes them."""
    repeat: bool | int = False
    """True: for ever; a number: that many times over."""
    labels: Literal["none", "prefix"] = "none"
    """`prefix`: items have a `label`, the number before the first `-` of the file's name."""


@dataclass(frozen=True, slots=True)
class NpzSource:
    """One item per `.npz` file in name order; its outputs are the arrays in the file."""

    kind: ClassVar[str] = "npz"
    outputs_known: ClassVar[tuple[str, ...]] = ()

    path: str
    """A folder of `.npz` files, or one file."""
    rate_per_s: float | None = None
    repeat: bool | int = False


@dataclass(frozen=True, slots=True)
class SyntheticTensor:
    """A tensor of seeded random values, uniform in [low, high)."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class SyntheticSource:
    """Seeded random tensors: load without data. Has either `outputs` or `like`."""

    kind: ClassVar[str] = "synthetic"
    outputs_known: ClassVar[tuple[str, ...]] = ()

    rate_per_s: float | None = None
    arrivals: Literal["periodic", "poisson"] = "periodic"
    count: int | None = None
    """Items in all; None: for ever."""
    seed: int = 0
    outputs: Mapping[str, SyntheticTensor] = field(default_factory=dict)
    like: str | None = None
    """A model: one output per input of that model, of its name, shape and dtype."""
    until: str | None = None
    """A pipeline: no more items once that one has ended."""


SourceSection = ImagesSource | NpzSource | SyntheticSource


@dataclass(frozen=True, slots=True)
class ImageToTensor:
    """Resize, select channels, and compute `(pixel - mean) * scale` as float32 with batch 1."""

    kind: ClassVar[str] = "image_to_tensor"
    outputs: ClassVar[tuple[str, ...]] = ("output",)

    size: tuple[int, int]
    """Height and width."""
    mean: tuple[float, ...] = (0.0,)
    """One value, or one per channel."""
    scale: tuple[float, ...] = (1 / 255,)
    """One value, or one per channel."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR", "GRAY"] = "RGB"


@dataclass(frozen=True, slots=True)
class Softmax:
    """Softmax along an axis."""

    kind: ClassVar[str] = "softmax"
    outputs: ClassVar[tuple[str, ...]] = ("output",)

    axis: int = -1


@dataclass(frozen=True, slots=True)
class TopK:
    """The k largest values along the last axis, largest first."""

    kind: ClassVar[str] = "top_k"
    outputs: ClassVar[tuple[str, ...]] = ("values", "indices", "labels")
    """`labels` only where `labels` names a file."""

    k: int = 5
    labels: str | None = None
    """A text file with one label a line."""


@dataclass(frozen=True, slots=True)
class Argmax:
    """Index of the largest value along an axis."""

    kind: ClassVar[str] = "argmax"
    outputs: ClassVar[tuple[str, ...]] = ("output",)

    axis: int = -1


TransformSection = ImageToTensor | Softmax | TopK | Argmax


@dataclass(frozen=True, slots=True)
class StageSection:
    """One of `[[pipelines.stages]]`: has either a transform or a model.

    A transform has one input, named `input`; a model has its own.
    """

    name: str
    transform: TransformSection | None = None
    """In the file: `transform` names it, `with` holds its parameters."""
    model: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Input name -> `stage.output` or `source.output`; see `PipelineSection.inputs_of`."""


@dataclass(frozen=True, slots=True)
class JsonlSink:
    """One JSON object a line and item."""

    kind: ClassVar[str] = "jsonl"

    path: str
    input: tuple[str, ...]
    """What it writes, each as `stage.output` or `source.output`."""


@dataclass(frozen=True, slots=True)
class NpzSink:
    """One `.npz` file an item."""

    kind: ClassVar[str] = "npz"

    path: str
    """A folder; made if it is not there."""
    input: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConsoleSink:
    """One line of text an item, on standard output."""

    kind: ClassVar[str] = "console"

    input: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AccuracySink:
    """Counts how often a predicted class is the expected one."""

    kind: ClassVar[str] = "accuracy"

    input: tuple[str, ...]
    """The predicted class, the expected class."""


SinkSection = JsonlSink | NpzSink | ConsoleSink | AccuracySink


@dataclass(frozen=True, slots=True)
class PipelineSection:
    """One of `[[pipelines]]`: a source, stages in order, and sinks."""

    name: str
    source: SourceSection
    stages: tuple[StageSection, ...]
    sinks: tuple[SinkSection, ...] = ()
    queue_capacity: int = 4
    """Items that fit on each edge between two stages."""
    full: Literal["block", "drop"] = "block"
    """What a full edge does: hold up what feeds it, or drop the newest item."""
    deadline_ns: int | None = None
    """Time from the source to the last sink."""
    priority: int | None = None
    """Instead of the models' own priorities."""

    def inputs_of(self, stage_index: int, input_names: Sequence[str]) -> Mapping[str, str]:
        """Return what each input of a stage reads, as `stage.output` or `source.output`.

        A stage that leaves `inputs` out reads from what stands before it (the source, for the
        first stage): a model each input from the output of the same name, a transform the first
        output. `input_names` are the stage's own: `("input",)` for a transform.
        """
        stage = self.stages[stage_index]
        if stage.inputs:
            return stage.inputs
        before = self.stages[stage_index - 1] if stage_index else None
        feeder = before.name if before else "source"
        if stage.model is not None:
            return {name: f"{feeder}.{name}" for name in input_names}
        outputs = before.transform.outputs if before and before.transform else ("output",)
        if before is None:
            outputs = self.source.outputs_known or tuple(getattr(self.source, "outputs", ()))
        return {name: f"{feeder}.{outputs[0]}" for name in input_names if outputs}


@dataclass(frozen=True, slots=True)
class OtlpSection:
    """`telemetry.otlp`: where spans go."""

    endpoint: str
    protocol: Literal["grpc", "http"] = "grpc"
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_ns: int = 2_000_000_000


@dataclass(frozen=True, slots=True)
class TracesSection:
    """`telemetry.traces`: which requests are traced, and how finely."""

    ratio: float = 1.0
    """Share of the ordinary requests that is kept."""
    always: tuple[Literal["error", "deadline_miss"], ...] = ("error", "deadline_miss")
    """Requests that are kept whatever the ratio."""
    slow_ns: int | None = None
    """Requests at least this long are kept whatever the ratio."""
    kernels: Literal["sampled", "always", "never"] = "sampled"
    max_spans: int = 2000
    """Most spans of one trace."""


@dataclass(frozen=True, slots=True)
class LogSection:
    """`telemetry.log`: every event as a line of JSON."""

    path: str
    max_size_bytes: int = 64 * 2**20
    """Size at which it is continued in a new file."""
    keep: int = 4
    """Older files that are kept."""


@dataclass(frozen=True, slots=True)
class MetricsSection:
    """`telemetry.metrics`: where figures are read."""

    prometheus: str | None = None
    """`host:port` to listen on."""


@dataclass(frozen=True, slots=True)
class TelemetrySection:
    """`[telemetry]`: what is observed and where it goes."""

    service_name: str | None = None
    """None: the manifest's name."""
    otlp: OtlpSection | None = None
    file: str | None = None
    """File for spans as OTLP-JSON lines."""
    traces: TracesSection = TracesSection()
    log: LogSection | None = None
    metrics: MetricsSection = MetricsSection()
    ring_capacity: int = 65_536
    """Events of a thread that wait for the telemetry thread; more are dropped and counted."""


@dataclass(frozen=True, slots=True)
class ServeSection:
    """`[serve]`: addresses of the inference protocol, as `host:port`."""

    http: str | None = None
    grpc: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole manifest; `load_manifest` makes it from a file."""

    name: str
    models: tuple[ModelSection, ...]
    manifest_version: int = 1
    device: DeviceSection = DeviceSection()
    streams: StreamsSection = StreamsSection()
    scheduler: SchedulerSection = SchedulerSection()
    pipelines: tuple[PipelineSection, ...] = ()
    telemetry: TelemetrySection = TelemetrySection()
    serve: ServeSection | None = None
    directory: Path = field(default=Path(), compare=False)
    """Folder that relative paths start from; not a key of the file."""
    stem: str = field(default="", compare=False)
    """Name of the file without its ending; empty if it came from no file. Not a key."""

    @property
    def service_name(self) -> str:
        """Name under which telemetry appears."""
        return self.telemetry.service_name or self.name

    def beside(self, ending: str) -> Path:
        """Return the file beside the manifest that has its name and this ending."""
        return self.directory / f"{self.stem or self.name}{ending}"

    def model(self, name: str) -> ModelSection:
        """Return a model's section; KeyError if there is none of that name."""
        for section in self.models:
            if section.name == name:
                return section
        raise KeyError(name)

    def resolve(self, path_text: str) -> Path:
        """Return the file a path of the manifest means; it need not exist.

        Raises ManifestError if a `package://` path names no installed package.
        """
        return resolve_path(path_text, self.directory)


def resolve_path(path_text: str, directory: Path) -> Path:
    """Resolve a relative, absolute or `package://<import name>/<path>` path.

    Packages are found without being imported. Raises ManifestError if one is not installed.
    """
    if not path_text.startswith(PACKAGE_SCHEME):
        return directory / path_text
    package, _, inside = path_text.removeprefix(PACKAGE_SCHEME).partition("/")
    if not package or not inside:
        raise ManifestError(f'expected "{PACKAGE_SCHEME}<import name>/<path>", found "{path_text}"')
    folders = _package_folders(package)
    if not folders:
        raise ManifestError(
            f"no package `{package}` is installed",
            context=path_text,
            hint="install the package that brings it into this Python environment",
        )
    candidates = [folder / inside for folder in folders]
    return next((path for path in candidates if path.exists()), candidates[0])


def _package_folders(package: str) -> list[Path]:
    # A dotted name would make find_spec import the parent; only top-level names are looked up.
    # Packages that hold but data may have a hyphen in their name.
    if not package.replace("-", "_").isidentifier():
        return []
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A model's input or output as its file states it."""

    dtype: str
    """NumPy's name: `float32`, `bfloat16`."""
    shape: tuple[int | str | None, ...]
    """Fixed dimensions, names of symbolic ones, None for unknown ones."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What manifest checks need to know about a model file."""

    inputs: Mapping[str, TensorFacts]
    outputs: Mapping[str, TensorFacts]
    weight_bytes: int
    operators: tuple[tuple[str, str], ...] = ()
    """(node, qualified operator), in the file's order."""
    unknown_operators: tuple[tuple[str, str, str], ...] = ()
    """(node, qualified operator, nearest alternative or ""): what can not be run."""
