"""What is written loads back to the same manifest."""

import tempfile
from pathlib import Path

from hypothesis import given, settings, strategies as st

from aegis_pipe.manifest import dump_manifest, load_manifest, model

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
FLOATS = st.floats(-1e6, 1e6, width=32)
DURATIONS = st.integers(10_000, 3600 * 10**9)
SIZES = st.integers(2**40, 2**60)
RATES = st.floats(1e-3, 1e6)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
PRIORITIES = st.integers(0, 1000)
CAPACITIES = st.integers(16, 65_536)
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
CONSTANTS = st.booleans() | st.integers(-9, 9) | FLOATS | st.lists(FLOATS, max_size=3).map(tuple)


def maybe(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | values


devices = st.builds(
    model.DeviceSection,
    kind=st.sampled_from(["cuda", "auto"]),
    index=st.integers(0, 3),
    memory_budget_bytes=maybe(st.just(2**62)),
    staging_budget_bytes=maybe(SIZES),
)
streams = st.builds(
    model.StreamsSection,
    in_flight=st.integers(1, 16),
    real_time=maybe(st.integers(1, 99)),
    sm=st.just(()),
    count=st.integers(1, 64),
    threads=st.integers(1, 256),
    max_block_ns=DURATIONS,
)
schedulers = st.builds(
    model.SchedulerSection,
    policy=st.sampled_from(["fifo", "edf", "json:JSONDecoder"]),
    queue_capacity=CAPACITIES,
    admission=st.sampled_from(["off", "report", "enforce"]),
    ageing_ns=st.just(0) | DURATIONS,
    drain_timeout_ns=DURATIONS,
)


@st.composite
def models(draw: st.DrawFn, name: str) -> model.ModelSection:
    return model.ModelSection(
        name=name,
        path="model.onnx",
        precision=draw(st.sampled_from(["fp32", "bf16"])),
        shapes=draw(st.dictionaries(TEXTS, SHAPES, max_size=2)),
        bind=draw(st.dictionaries(TEXTS, CONSTANTS, max_size=2)),
        memory_budget_bytes=draw(maybe(SIZES)),
        priority=draw(PRIORITIES),
        weight=draw(st.floats(0.001, 1e6)),
        period_ns=draw(maybe(DURATIONS)),
        deadline_ns=draw(maybe(DURATIONS)),
        late=draw(st.sampled_from(["drop", "run"])),
        concurrency=draw(st.none() | st.integers(1, 64)),
        batching=draw(
            st.none()
            | st.builds(
                model.BatchingSection,
                st.integers(2, 1024),
                window_ns=st.integers(0, 3_600_000_000_000),
            )
        ),
        queue_capacity=draw(maybe(CAPACITIES)),
    )


REPEATS = st.booleans() | st.integers(1, 9)
tensors = st.builds(
    model.SyntheticTensor,
    shape=SHAPES,
    dtype=st.sampled_from(["float32", "int8"]),
    low=st.floats(-9, -1),
    high=st.floats(0, 9),
)


def sources(model_name: str) -> st.SearchStrategy:
    synthetic = {
        "rate_per_s": RATES,
        "arrivals": st.sampled_from(["periodic", "poisson"]),
        "count": maybe(st.integers(1, 99)),
        "seed": st.integers(0, 99),
    }
    return st.one_of(
        st.builds(
            model.ImagesSource,
            path=st.just("frames"),
            pattern=st.sampled_from(["*", "*.png"]),
            rate_per_s=maybe(RATES),
            repeat=REPEATS,
        ),
        st.builds(model.SyntheticSource, like=st.just(model_name), **synthetic),
        st.builds(
            model.SyntheticSource,
            outputs=st.dictionaries(TEXTS, tensors, min_size=1, max_size=2),
            **synthetic,
        ),
    )


CHANNELS = st.lists(FLOATS, min_size=3, max_size=3).map(tuple) | FLOATS.map(lambda x: (x,))
transforms = st.one_of(
    st.builds(
        model.ImageToTensor,
        size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        mean=CHANNELS,
        scale=CHANNELS,
        layout=st.sampled_from(["NCHW", "NHWC"]),
        channels=st.sampled_from(["RGB", "BGR"]),
    ),
    st.builds(model.Softmax, axis=st.integers(-16, 15)),
    st.builds(model.TopK, k=st.integers(1, 9), labels=maybe(st.just("labels.txt"))),
    st.builds(model.Argmax, axis=st.integers(-16, 15)),
)


@st.composite
def pipelines(draw: st.DrawFn, name: str, model_name: str) -> model.PipelineSection:
    stages = [model.StageSection("first", model=model_name)]
    for index in range(draw(st.integers(0, 3))):
        inputs = {"input": "first.x"}
        stages.append(model.StageSection(f"next-{index}", draw(transforms), inputs=inputs))
    edges = tuple(draw(st.lists(st.sampled_from(["first.a", "first.b"]), min_size=1, unique=True)))
    sinks = [
        model.JsonlSink(f"out/{name}.jsonl", edges),
        model.NpzSink(f"out/{name}", edges),
        model.ConsoleSink(edges),
    ]
    return model.PipelineSection(
        name=name,
        source=draw(sources(model_name)),
        stages=tuple(stages),
        sinks=tuple(draw(st.lists(st.sampled_from(sinks), unique=True))),
        queue_capacity=draw(CAPACITIES),
        full=draw(st.sampled_from(["block", "drop"])),
        deadline_ns=draw(maybe(DURATIONS)),
        priority=draw(maybe(PRIORITIES)),
    )


telemetries = st.builds(
    model.TelemetrySection,
    service_name=maybe(TEXTS),
    otlp=maybe(
        st.builds(
            model.OtlpSection,
            endpoint=st.just("https://collector.example:4318/x"),
            protocol=st.sampled_from(["grpc", "http"]),
            headers=st.dictionaries(
                st.from_regex("x-[a-z0-9_.]{1,5}", fullmatch=True),
                st.from_regex("[ -~]{0,9}", fullmatch=True),
                max_size=2,
            ),
            timeout_ns=st.integers(10**6, 10**9),
        )
    ),
    file=maybe(st.just("out/otlp.jsonl")),
    traces=st.builds(
        model.TracesSection,
        ratio=st.floats(0, 1),
        always=st.sampled_from([(), ("error",), ("deadline_miss", "error")]),
        slow_ns=maybe(DURATIONS),
        kernels=st.sampled_from(["sampled", "always", "never"]),
        max_spans=CAPACITIES,
    ),
    log=maybe(st.just(model.LogSection("out/log.jsonl", 2_000_000, 2))),
    metrics=st.builds(model.MetricsSection, maybe(st.just("127.0.0.1:9464"))),
    ring_capacity=CAPACITIES,
)
serves = st.sampled_from(
    [None, model.ServeSection(http="a:1"), model.ServeSection(http="a:1", grpc="a:2")]
)


@st.composite
def manifests(draw: st.DrawFn) -> model.Manifest:
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    pipeline_names = draw(st.lists(NAMES, max_size=2, unique=True))
    return model.Manifest(
        name=draw(NAMES),
        models=tuple(draw(models(name)) for name in names),
        device=draw(devices),
        streams=draw(streams),
        scheduler=draw(schedulers),
        pipelines=tuple(draw(pipelines(name, names[0])) for name in pipeline_names),
        telemetry=draw(telemetries),
        serve=draw(serves),
    )


@settings(max_examples=60, deadline=None)
@given(manifests())
def test_round_trip(manifest: model.Manifest) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").touch()
        (folder / "frames").mkdir()
        (folder / "frames" / "1.png").touch()
        (folder / "labels.txt").touch()
        file = folder / "manifest.toml"
        file.write_text(dump_manifest(manifest), "utf-8")
        assert load_manifest(file) == manifest


def test_defaults_are_left_out() -> None:
    manifest = model.Manifest(
        name="small",
        models=(model.ModelSection("a", "a.onnx", shapes={"x": (1, 3)}, period_ns=33_000_000),),
        pipelines=(
            model.PipelineSection(
                "load",
                model.SyntheticSource(like="a"),
                (
                    model.StageSection("run", model="a"),
                    model.StageSection("best", model.TopK(), inputs={"input": "run.y"}),
                ),
            ),
        ),
        telemetry=model.TelemetrySection(traces=model.TracesSection(ratio=0.5)),
    )
    assert (
        dump_manifest(manifest)
        == """\
#:schema ../schemas/manifest.schema.json
manifest_version = 1
name = "small"

[[models]]
name = "a"
path = "a.onnx"
period = "33 ms"

[models.shapes]
x = [1, 3]

[[pipelines]]
name = "load"
stages = [
    { name = "run", model = "a" },
    { name = "best", transform = "top_k", inputs = { input = "run.y" } },
]

[pipelines.source]
kind = "synthetic"
like = "a"

[telemetry.traces]
ratio = 0.5
"""
    )
