"""Latency on a GPU: this runtime beside PyTorch and ONNX Runtime, same networks, weights, inputs.

    python tools/bench_cuda.py --json docs/benchmarks/cuda_h100.json [--models resnet50 bert_base] \
        [--batches 1 8] [--precisions fp16 tf32] [--compile [MODE]] [--conditions]

One request at a time, data on the device, where a request leaves its inputs as they are: launch and
synchronise, by the host's clock; all in turns, so that whatever the GPU's clocks do happens to all.
Networks come from torchvision and transformers, with random weights, exported to ONNX on the spot;
where they or torch are missing, from tools/make_networks.py, and PyTorch is no peer. ONNX Runtime
is one where its CUDA provider runs. Every row tells the relative error of the outputs against the
network in float32, so that a fast wrong answer is seen (in int8 it is what 8 bits cost), and what
could not be compared with says why. For the sake of the slowest requests, how often the host is
interrupted is told, and for how long. `--conditions` has our requests once more as the host may run
them otherwise: on one core, in real time, and polled for.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_cuda_networks import (
    NETWORKS,
    Subject,
    half_exporter,
    quantised_subject,
    release_memory,
    subject_of,
    why_no_torch,
)
from bench_cuda_peers import (
    Contestant,
    Field,
    onnxruntime_peers,
    reason,
    relative_error,
    torch_peers,
    why_no_onnxruntime,
)

from aegis_pipe import __version__
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext, DeviceStream, StagedInputs, StagingAhead
from aegis_pipe.device.registry import open_device
from aegis_pipe.errors import AegisError
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.threads import real_time_threads

WARM_UPS = 30
TURNS = 8
REQUESTS = 400
"""Of each, in all turns together."""
OURS = "aegis-pipe"
PAUSE_S = 0.005
"""Between requests that come now and then."""
INTERRUPTION_NS = 3_000
"""A thread that looks at the clock all the time misses no less unless it was interrupted."""
SENDERS = 4
"""Threads that hand in requests where what a launch costs is measured."""

INT8 = "int8"
"""Of a convolutional network in QDQ form, as tools/quantise_network.py writes it."""
ROWS = (
    *(("resnet50", batch, "fp16") for batch in (1, 8, 32)),
    *(("resnet50", batch, "tf32") for batch in (1, 8)),
    ("resnet50", 1, "bf16"),
    *((name, b, "fp16") for name in ("mobilenet_v2", "bert_base", "vit_b_16") for b in (1, 8)),
    *(("resnet50", batch, INT8) for batch in (1, 8)),
)
"""What is measured unless something else is asked for: network, batch, precision."""


ARCHITECTURES = {"bert_base": "bert", "vit_b_16": "vit"}
"""What ONNX Runtime's optimiser calls them."""


def _percentiles(times_ns: list[int]) -> dict[str, float]:
    milliseconds = np.sort(np.array(times_ns)) / 1e6
    return {
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "min_ms": float(milliseconds[0]),
    }


def _run(contestant: Contestant, warm_ups: int, requests: int) -> None:
    """Time so many of its requests."""
    request = contestant.request
    with contestant.around():
        for _ in range(warm_ups):
            request()
        for _ in range(requests):
            begin = time.perf_counter_ns()
            request()
            contestant.times_ns.append(time.perf_counter_ns() - begin)


def _compete(field: Field) -> dict[str, dict[str, Any]]:
    """Time all in turns; return their rows, or why there are no figures."""
    racing = {name: each for name, each in field.items() if isinstance(each, Contestant)}
    gc.collect()
    gc.disable()
    try:
        for turn in range(TURNS):
            for contestant in racing.values():
                if contestant.failure:
                    continue
                try:
                    _run(contestant, 5 if turn else WARM_UPS, REQUESTS // TURNS)
                except Exception as failure:
                    contestant.failure = reason(failure)
    finally:
        gc.enable()
    rows: dict[str, dict[str, Any]] = {}
    for name, each in field.items():
        if isinstance(each, str):
            rows[name] = {"error": each}
        elif each.failure:
            rows[name] = {"error": each.failure, **each.facts}
        else:
            rows[name] = {**_percentiles(each.times_ns), **each.facts}
    return rows


def _ours(
    stack: ExitStack, subject: Subject, name: str, precision: str, *, conditions: bool = False
) -> Field:
    """Load, check and measure alone; the device stays open until `stack` is left.

    Returns ours, first, and with `conditions` the same under each of them.
    """
    clock = SystemClock()
    begin = time.perf_counter()
    graph = ModelLoader().load(subject.path, LoadOptions(name=name))
    # A request's inputs share memory with what comes later; those of others here do not.
    graph = replace(graph, outputs=(*graph.outputs, *graph.inputs))
    context = stack.enter_context(open_device("cuda", clock=clock).context)
    inputs = {str(graph.inputs[0]): subject.example}
    staged = map(context.description.staged_bytes, (each.nbytes for each in inputs.values()))
    ahead = context.reserve_staging_ahead(sum(staged), SENDERS + 1)
    stream = context.create_stream(0)
    stack.callback(stream.close)
    opened = time.perf_counter()
    standalone = stack.enter_context(StandaloneGraph(graph, context, stream, clock, precision))
    loaded = time.perf_counter()
    output = str(graph.outputs[0])
    result = standalone.run(inputs)[output]
    before = context.allocation_count
    again = {standalone.run(inputs)[output].tobytes() for _ in range(50)}
    alone = Contestant(standalone.run_on_device)
    _run(alone, WARM_UPS, REQUESTS // 2)
    facts: dict[str, Any] = {
        "relative_error": relative_error(result, subject.expected),
        "allocations_per_request": context.allocation_count - before,
        "launch_us": _launch_us(standalone, inputs, ahead, 0),
        "launch_after_pause_us": _launch_us(standalone, inputs, ahead, PAUSE_S),
        "launch_behind_copy_us": _launch_us(standalone, inputs, None, 0),
        "load_s": loaded - begin,
        "device_open_s": opened - begin,
        "kernels": len(standalone.kernels()),
        "weights_bytes": standalone.compiled.weight_bytes,
        "arena_bytes": standalone.compiled.plan.peak_bytes,
        "kernel_us": _kernel_times(standalone),
        "on_device": _on_device(standalone, context, stream),
        "alone": _percentiles(alone.times_ns),
    }
    # Also of the last request whose inputs nobody had written again.
    again.add(standalone.read_outputs()[output].tobytes())
    facts["same_bits"] = again == {result.tobytes()}
    ours: Field = {OURS: Contestant(standalone.run_on_device, facts)}
    if conditions:
        ours |= _under_conditions(stack, standalone, context, stream)
    return ours


def _under_conditions(
    stack: ExitStack,
    standalone: StandaloneGraph,
    context: DeviceContext,
    stream: DeviceStream,
) -> Field:
    """Return the same requests as the host may run them otherwise."""
    event = context.create_event()
    stack.callback(event.close)

    def polled() -> None:
        standalone.launch()
        stream.record(event)
        while not event.is_done():
            pass

    request, real_time = standalone.run_on_device, partial(real_time_threads, 50)
    return {
        f"{OURS}, one core": Contestant(request, around=_one_core),
        f"{OURS}, real time": Contestant(request, around=real_time),
        f"{OURS}, polled": Contestant(polled),
        f"{OURS}, all three": Contestant(polled, around=_one_core_in_real_time),
    }


@contextmanager
def _one_core() -> Iterator[None]:
    """Keep the calling thread on the last of its cores."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def _one_core_in_real_time() -> Iterator[None]:
    with _one_core(), real_time_threads(50):
        yield


def _load_s(path: Path, name: str, precision: str) -> float:
    """Return how long it takes to open the device and load, with choices and kernels on disk."""
    clock = SystemClock()
    begin = time.perf_counter()
    graph = ModelLoader().load(path, LoadOptions(name=name))
    with open_device("cuda", clock=clock).context as context:
        stream = context.create_stream(0)
        with StandaloneGraph(graph, context, stream, clock, precision):
            loaded = time.perf_counter()
        stream.close()
    return loaded - begin


def _launch_us(
    standalone: StandaloneGraph,
    inputs: dict[str, np.ndarray],
    ahead: StagingAhead | None,
    pause_s: float,
) -> float:
    """Return what launching the captured model costs the host, between its copies in and out.

    As on a request's way: after the request before it has ended, and the host has slept for a
    while if there is a pause. What the driver touches for a launch is as cold then as that left it.
    Inputs that are not small are brought to page-locked memory by the threads that hand requests
    in, enough of them that none is waited for: `ahead`; without it, by the one that launches.
    """
    times = []
    arrays = [*inputs.values()]
    with ThreadPoolExecutor(SENDERS) as senders:
        waiting: deque[Future[StagedInputs | None]] = deque()
        for _ in range(200):
            while ahead and len(waiting) < SENDERS:
                waiting.append(senders.submit(ahead.stage, arrays))
            time.sleep(pause_s)
            staged = waiting.popleft().result() if waiting else None
            if ahead and staged:
                ahead.serve([staged])
            standalone.enqueue_inputs(inputs)
            begin = time.perf_counter_ns()
            standalone.launch()
            times.append(time.perf_counter_ns() - begin)
            standalone.synchronise()
        while ahead and waiting:
            staged = waiting.popleft().result()
            if staged:
                ahead.give_back(staged)
        if ahead:
            ahead.serve([])
    return float(np.median(times)) / 1e3


def _on_device(
    standalone: StandaloneGraph,
    context: DeviceContext,
    stream: DeviceStream,
) -> dict[str, float]:
    """Return how long requests take by the device's own events: what the host adds is not in it."""
    begin, end = (context.create_event() for _ in range(2))
    times = []
    for _ in range(REQUESTS // 2):
        stream.record(begin)
        standalone.launch()
        stream.record(end)
        stream.synchronise()
        times.append(end.completed_ns() - begin.completed_ns())
    begin.close()
    end.close()
    return _percentiles(times)


def _kernel_times(standalone: StandaloneGraph) -> dict[str, list[float]]:
    """Return launches and microseconds by operator and kernel, from stamped launches."""
    names = standalone.kernels()
    runs = []
    for _ in range(20):
        times = standalone.kernel_times_ns()
        runs.append(times[:, 1] - times[:, 0])
    spent = np.median(np.stack(runs), axis=0) / 1e3
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for each, microseconds in zip(names, spent, strict=True):
        totals[each][0] += 1
        totals[each][1] += float(microseconds)
    return dict(sorted(totals.items(), key=lambda item: -item[1][1]))


def _peers(subject: Subject, row: dict[str, Any], options: argparse.Namespace) -> Field:
    """Return what ours is compared with in a row; a peer that fails has its reason there."""
    name, precision = row["model"], row["precision"]
    peers: Field = {}
    if subject.module is None:
        peers["torch eager"] = why_no_torch() or "its int8 is for CPUs"
    else:
        try:
            peers |= torch_peers(
                subject.module,
                subject.data,
                subject.expected,
                precision,
                options.compile,
                options.compile_limit,
            )
        except Exception as failure:
            traceback.print_exc()
            peers["torch eager"] = reason(failure)
    if options.without_onnxruntime:
        peers["onnxruntime"] = options.without_onnxruntime
        return peers
    try:
        peers |= onnxruntime_peers(
            subject.path,
            ARCHITECTURES.get(name),
            subject.example,
            subject.expected,
            precision,
            half_exporter(subject),
        )
    except Exception as failure:
        traceback.print_exc()
        peers["onnxruntime"] = reason(failure)
    return peers


def _row(
    name: str,
    batch: int,
    precisions: list[str],
    folder: Path,
    options: argparse.Namespace,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Measure a network in each precision; every row goes to `keep`, which may get it again."""
    whole = subject_of(name, batch, folder)
    for precision in precisions:
        subject = quantised_subject(whole) if precision == INT8 else whole
        # What stays in floats is computed in float32 then.
        floats = "fp32" if precision == INT8 else precision
        row: dict[str, Any] = {"model": name, "batch": batch, "precision": precision}
        with ExitStack() as stack:
            field: Field = {}
            try:
                field |= _ours(stack, subject, name, floats, conditions=options.conditions)
                ours = field[OURS]
                assert isinstance(ours, Contestant)
                # Kept already: what follows is others' code.
                row[OURS] = {**ours.facts["alone"], **ours.facts}
            except Exception as failure:
                traceback.print_exc()
                field[OURS] = reason(failure)
                row[OURS] = {"error": reason(failure)}
            keep(row)
            if not options.no_peers:
                field |= _peers(subject, row, options)
            row |= _compete(field)
            if "error" in row[OURS] and "alone" in row[OURS]:
                row[OURS] |= row[OURS]["alone"]
            keep(row)
            field.clear()
        gc.collect()
        if subject.module is not None:
            release_memory()
        try:
            row[OURS]["load_warm_s"] = _load_s(subject.path, name, floats)
        except Exception as failure:
            row[OURS]["load_warm_error"] = reason(failure)
        keep(row)
        _show(row)


def _figures(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: figures for name, figures in row.items() if isinstance(figures, dict)}


def _show(row: dict[str, Any]) -> None:
    print(f"{row['model']} {row['precision']} b{row['batch']}", flush=True)
    for name, figures in _figures(row).items():
        facts = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in figures.items()
            if key not in ("kernel_us", "alone", "on_device")
        )
        print(f"  {name:<18} {facts[:600]}", flush=True)
    for kernel, (count, microseconds) in list(row[OURS].get("kernel_us", {}).items())[:8]:
        print(f"    {kernel:<60} x{count:<4} {microseconds:8.1f} us", flush=True)


def _summary(rows: list[dict[str, Any]]) -> str:
    """Return a table of all rows: ours, every peer's median, and who is fastest."""
    peers = list(dict.fromkeys(name for row in rows for name in _figures(row) if name != OURS))
    header = ["model", "batch", "precision", "ours p50", "ours p99", *peers, "ours is fastest"]
    lines = [header]
    reasons = []
    for row in rows:
        figures = _figures(row)
        medians = {name: each["p50_ms"] for name, each in figures.items() if "p50_ms" in each}
        ours = figures[OURS]
        cells = [row["model"], str(row["batch"]), row["precision"]]
        cells += [f"{ours[key]:.3f}" if key in ours else "-" for key in ("p50_ms", "p99_ms")]
        cells += [f"{medians[name]:.3f}" if name in medians else "-" for name in peers]
        others = [median for name, median in medians.items() if not name.startswith(OURS)]
        if OURS not in medians or not others:
            cells.append("-")
        elif medians[OURS] <= min(others):
            cells.append(f"yes, {min(others) / medians[OURS]:.2f}x")
        else:
            cells.append(f"no, {min(others) / medians[OURS]:.2f}x")
        lines.append(cells)
        reasons += [
            f"{' '.join(cells[:3])}, {name}: {each['error']}"
            for name, each in figures.items()
            if "error" in each
        ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join(["times in ms; x: the fastest peer's median over ours", *table, *reasons])


def _interruptions() -> dict[str, float]:
    """Return how often this core is taken from a thread that never waits, and for how long.

    Whoever waits on the host for the end of a request sees it as much later, at times.
    """
    gaps_ns = []
    begin = last = time.perf_counter_ns()
    while last - begin < 10**9:
        now = time.perf_counter_ns()
        if now - last > INTERRUPTION_NS:
            gaps_ns.append(now - last)
        last = now
    if not gaps_ns:
        return {"per_s": 0}
    p50_us, p90_us = (round(float(np.percentile(gaps_ns, q)) / 1e3, 1) for q in (50, 90))
    return {"per_s": len(gaps_ns), "p50_us": p50_us, "p90_us": p90_us}


def _machine() -> dict[str, Any]:
    with open_device("cuda", clock=SystemClock()).context as context:
        about = context.description
        return {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "gpu": about.model,
            "libraries": dict(about.library_versions),
            "torch": why_no_torch() or importlib.metadata.version("torch"),
            "aegis_pipe": __version__,
            "python": platform.python_version(),
            "command": " ".join(sys.argv),
            "requests": REQUESTS,
            "interruptions": _interruptions(),
        }


def main() -> int:
    """Run the rows asked for; 1 if one of ours has no figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int)
    precisions = list(dict.fromkeys(row[2] for row in ROWS))
    parser.add_argument("--precisions", nargs="+", choices=precisions)
    parser.add_argument("--no-peers", action="store_true", help="measure ours alone")
    parser.add_argument("--no-onnxruntime", action="store_true", help="leave its rows out")
    parser.add_argument("--conditions", action="store_true", help="ours as the host may run it")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=["default", "max-autotune-no-cudagraphs"],
        help="torch.compile is a peer, too, in this mode",
    )
    parser.add_argument(
        "--compile-limit", type=int, default=150, metavar="SECONDS", help="most for each of them"
    )
    options = parser.parse_args()
    wanted = [
        row
        for row in ROWS
        if (not options.models or row[0] in options.models)
        and (not options.batches or row[1] in options.batches)
        and (not options.precisions or row[2] in options.precisions)
    ]
    if not wanted:
        parser.error("no row is of these models, batches and precisions")
    if missing := why_no_torch():
        print(f"networks are those of tools/make_networks.py; {missing}", file=sys.stderr)
    options.without_onnxruntime = "left out" if options.no_onnxruntime else ""
    if not options.no_peers and not options.no_onnxruntime:
        options.without_onnxruntime = why_no_onnxruntime()
    rows: list[dict[str, Any]] = []
    try:
        report = {"machine": _machine(), "rows": rows}
    except AegisError as error:
        sys.exit(f"error: {error}")

    def keep(row: dict[str, Any]) -> None:
        if not any(each is row for each in rows):
            rows.append(row)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report, indent=1) + "\n")

    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name, batch in dict.fromkeys(row[:2] for row in wanted):
            precisions = [row[2] for row in wanted if row[:2] == (name, batch)]
            try:
                _row(name, batch, precisions, Path(folder), options, keep)
            except Exception:
                traceback.print_exc()
                failed = True
    print(_summary(rows))
    return 1 if failed or any("error" in row[OURS] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
