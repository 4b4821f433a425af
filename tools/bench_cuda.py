"""Latency on a GPU: this runtime beside PyTorch, same networks, same weights, same inputs.

    python tools/bench_cuda.py --json docs/benchmarks/cuda_h100.json [--models resnet50 bert] \
        [--batches 1 8] [--precisions fp16 tf32] [--compile]

One request at a time, data on the device: launch and synchronise, by the host's clock.
Networks come from torchvision and transformers, with random weights, exported to ONNX on the spot;
needs torch, torchvision and transformers beside the `cuda` extra. Every row tells the relative
error of the outputs against PyTorch in float32, so that a fast wrong answer is seen.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aegis_pipe import __version__
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.registry import open_device
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.standalone import StandaloneGraph

WARM_UPS = 30
REQUESTS = 400
LENGTH = 128

ROWS = (
    *(("resnet50", batch, "fp16") for batch in (1, 8, 32)),
    *(("resnet50", batch, "tf32") for batch in (1, 8)),
    ("resnet50", 1, "bf16"),
    *((name, b, "fp16") for name in ("mobilenet_v2", "bert_base", "vit_b_16") for b in (1, 8)),
)
"""What is measured unless something else is asked for: network, batch, precision."""


class _LastHidden(torch.nn.Module):
    """An encoder that returns its last hidden state only."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(input_ids=ids).last_hidden_state


def _image(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(7))


def _ids(batch: int) -> torch.Tensor:
    return torch.randint(0, 30000, (batch, LENGTH), generator=torch.Generator().manual_seed(7))


def _torchvision(name: str) -> torch.nn.Module:
    import torchvision

    # The fast path has no form in ONNX.
    torch.backends.mha.set_fastpath_enabled(False)
    model = getattr(torchvision.models, name)(weights=None)
    if hasattr(model, "heads"):
        # Zero as it is made, which would make every output right.
        torch.nn.init.normal_(model.heads.head.weight, std=0.02)
    # Statistics of random weights make outputs vanish: take them from data.
    model.train()
    with torch.no_grad():
        for seed in range(3):
            model(torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(seed)))
    return model


def _bert() -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(attn_implementation="eager")
    return _LastHidden(BertModel(config, add_pooling_layer=False))


NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[int], torch.Tensor], str]] = {
    "resnet50": (lambda: _torchvision("resnet50"), _image, "images"),
    "mobilenet_v2": (lambda: _torchvision("mobilenet_v2"), _image, "images"),
    "bert_base": (_bert, _ids, "ids"),
    "vit_b_16": (lambda: _torchvision("vit_b_16"), _image, "images"),
}


def _percentiles(times_ns: list[int]) -> dict[str, float]:
    milliseconds = np.sort(np.array(times_ns)) / 1e6
    return {
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "min_ms": float(milliseconds[0]),
    }


def _timed(
    request: Callable[[], object], prepare: Callable[[], object] = lambda: None
) -> dict[str, float]:
    for _ in range(WARM_UPS):
        prepare()
        request()
    times = []
    for _ in range(REQUESTS):
        prepare()
        begin = time.perf_counter_ns()
        request()
        times.append(time.perf_counter_ns() - begin)
    return _percentiles(times)


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(got.astype(np.float64) - wide) / np.linalg.norm(wide))


def _ours(
    path: Path, name: str, example: torch.Tensor, expected: np.ndarray, precision: str
) -> dict[str, Any]:
    clock = SystemClock()
    begin = time.perf_counter()
    graph = ModelLoader().load(path, LoadOptions(name=name))
    with open_device("cuda", clock=clock).context as context:
        stream = context.create_stream(0)
        opened = time.perf_counter()
        with StandaloneGraph(graph, context, stream, clock, precision) as standalone:
            loaded = time.perf_counter()
            inputs = {str(graph.inputs[0]): example.numpy()}
            (result,) = standalone.run(inputs).values()
            before = context.allocation_count
            again = {standalone.run(inputs).popitem()[1].tobytes() for _ in range(50)}
            launch_us = _launch_us(standalone, inputs)
            figures = _timed(standalone.run_on_device, lambda: standalone.write_inputs(inputs))
            row: dict[str, Any] = {
                **figures,
                "relative_error": _error(result, expected),
                "same_bits": again == {result.tobytes()},
                "allocations_per_request": context.allocation_count - before,
                "launch_us": launch_us,
                "load_s": loaded - begin,
                "device_open_s": opened - begin,
                "kernels": len(standalone.kernels()),
                "weights_bytes": standalone.compiled.weight_bytes,
                "arena_bytes": standalone.compiled.plan.peak_bytes,
                "kernel_us": _kernel_times(standalone, inputs),
            }
        stream.close()
    row["load_warm_s"] = _load_s(path, name, precision)
    return row


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


def _launch_us(standalone: StandaloneGraph, inputs: dict[str, np.ndarray]) -> float:
    """Return what launching the captured model costs the host, without its copies."""
    times = []
    for _ in range(200):
        # What they lie in holds something else after a run.
        standalone.write_inputs(inputs)
        begin = time.perf_counter_ns()
        standalone.launch()
        times.append(time.perf_counter_ns() - begin)
        standalone.synchronise()
    return float(np.median(times)) / 1e3


def _kernel_times(
    standalone: StandaloneGraph, inputs: dict[str, np.ndarray]
) -> dict[str, list[float]]:
    """Return launches and microseconds by operator and kernel, from stamped launches."""
    names = standalone.kernels()
    runs = []
    for _ in range(20):
        standalone.write_inputs(inputs)
        times = standalone.kernel_times_ns()
        runs.append(times[:, 1] - times[:, 0])
    spent = np.median(np.stack(runs), axis=0) / 1e3
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for each, microseconds in zip(names, spent, strict=True):
        totals[each][0] += 1
        totals[each][1] += float(microseconds)
    return dict(sorted(totals.items(), key=lambda item: -item[1][1]))


def _peers(
    model: torch.nn.Module,
    example: torch.Tensor,
    expected: np.ndarray,
    precision: str,
    with_compiled: bool,
) -> dict[str, dict[str, Any]]:
    """Return PyTorch's rows: eager, captured as a CUDA graph, and compiled and captured."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    network = model.to("cuda", dtype)
    data = example.to("cuda")
    if data.is_floating_point():
        network = network.to(memory_format=torch.channels_last)
        data = data.to(dtype).to(memory_format=torch.channels_last)
    rows: dict[str, dict[str, Any]] = {}
    if hasattr(network, "encoder") and hasattr(network.encoder, "set_attn_implementation"):
        # The export wants attention spelled out; PyTorch itself is faster with its own kernel.
        network.encoder.set_attn_implementation("sdpa")
    with torch.inference_mode():
        output = network(data)
        error = _error(output.float().cpu().numpy(), expected)

        def eager() -> None:
            network(data)
            torch.cuda.synchronize()

        rows["torch eager"] = {**_timed(eager), "relative_error": error}
        try:
            rows["torch cuda graph"] = {**_captured(network, data), "relative_error": error}
        except RuntimeError as failure:
            rows["torch cuda graph"] = {"error": str(failure)}
        if with_compiled:
            try:
                compiled = torch.compile(network)
                error = _error(compiled(data).float().cpu().numpy(), expected)
                figures = _captured(compiled, data)
                rows["torch compile, cuda graph"] = {**figures, "relative_error": error}
            except Exception as failure:
                rows["torch compile, cuda graph"] = {"error": str(failure)[:200]}
            torch.compiler.reset()
    model.to("cpu", torch.float32)
    return rows


def _captured(network: torch.nn.Module, data: torch.Tensor) -> dict[str, float]:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            network(data)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        network(data)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return _timed(replay)


def _row(
    name: str,
    batch: int,
    precisions: list[str],
    folder: Path,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    make, example_of, _ = NETWORKS[name]
    torch.manual_seed(1)
    model = make().eval()
    example = example_of(batch)
    path = folder / f"{name}_{batch}.onnx"
    with torch.inference_mode():
        torch.onnx.export(model, (example,), str(path), opset_version=17, dynamo=False)
        # The reference is taken without tf32, in the precision of the weights.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        expected = model.to("cuda")(example.to("cuda")).cpu().numpy()
        model.to("cpu")
    rows = []
    for precision in precisions:
        row: dict[str, Any] = {"model": name, "batch": batch, "precision": precision}
        try:
            row["aegis-pipe"] = _ours(path, name, example, expected, precision)
        except Exception as failure:
            traceback.print_exc()
            row["aegis-pipe"] = {"error": f"{type(failure).__name__}: {failure}"}
        if not options.no_peers:
            row |= _peers(model, example, expected, precision, options.compile)
        rows.append(row)
        _show(row)
    return rows


def _show(row: dict[str, Any]) -> None:
    print(f"{row['model']} {row['precision']} b{row['batch']}", flush=True)
    for name, figures in row.items():
        if isinstance(figures, dict):
            facts = ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in figures.items()
                if key != "kernel_us"
            )
            print(f"  {name:<18} {facts[:600]}", flush=True)
    for kernel, (count, microseconds) in list(row["aegis-pipe"].get("kernel_us", {}).items())[:8]:
        print(f"    {kernel:<60} x{count:<4} {microseconds:8.1f} us", flush=True)


def _machine() -> dict[str, Any]:
    with open_device("cuda", clock=SystemClock()).context as context:
        about = context.description
        return {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "gpu": about.model,
            "libraries": dict(about.library_versions),
            "torch": torch.__version__,
            "aegis_pipe": __version__,
            "python": platform.python_version(),
            "command": " ".join(sys.argv),
            "requests": REQUESTS,
        }


def main() -> int:
    """Run the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--precisions", nargs="+")
    parser.add_argument("--no-peers", action="store_true", help="leave PyTorch's rows out")
    parser.add_argument("--compile", action="store_true", help="torch.compile is a peer, too")
    options = parser.parse_args()
    report = {"machine": _machine(), "rows": []}
    wanted = [
        row
        for row in ROWS
        if (not options.models or row[0] in options.models)
        and (not options.batches or row[1] in options.batches)
        and (not options.precisions or row[2] in options.precisions)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, batch in dict.fromkeys(row[:2] for row in wanted):
            precisions = [row[2] for row in wanted if row[:2] == (name, batch)]
            try:
                report["rows"] += _row(name, batch, precisions, Path(folder), options)
            except Exception:
                traceback.print_exc()
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
