"""What `bench_cuda.py` compares with: PyTorch and ONNX Runtime on the same GPU, ready to run.

A peer that can not be had gives a row with `error`, which says why, instead of a contestant.
"""

from __future__ import annotations

import copy
import importlib.util
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CUDA = "CUDAExecutionProvider"
DTYPES = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
PROBE = """
import importlib.util
import sys
if importlib.util.find_spec("torch"):
    import torch
    torch.zeros(1, device="cuda")
import numpy, onnx, onnxruntime
from onnx import helper
if hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls()
value = [helper.make_tensor_value_info(name, 1, [1, 1, 8, 8]) for name in ("x", "w", "y")]
node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[3, 4, 4, 3])
graph = helper.make_graph([node], "probe", value[:2], value[2:])
imports = [helper.make_opsetid("", 17)]
model = helper.make_model(graph, opset_imports=imports, ir_version=8)
session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CUDAExecutionProvider"]
)
if session.get_providers()[0] != "CUDAExecutionProvider":
    sys.exit("the session runs on " + session.get_providers()[0])
ones = numpy.ones((1, 1, 8, 8), "f")
session.run(None, {"x": ones, "w": ones})
"""
"""Run in a process of its own: libraries that do not fit together may end it."""


@dataclass(eq=False)
class Contestant:
    """Something whose requests are timed, one behind the other."""

    request: Callable[[], object]
    facts: dict[str, Any] = field(default_factory=dict)
    """What its row says beside its times."""
    kept: object = None
    """What has to live as long: a captured graph knows addresses only."""
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    """Entered for each of its turns."""
    times_ns: list[int] = field(default_factory=list)
    failure: str = ""


Field = dict[str, Contestant | str]
"""Contestants by name; instead of one that can not be had, the reason."""


def reason(failure: BaseException) -> str:
    """Return an exception as a row's `error`: its kind and the beginning of what it says."""
    text = " ".join(str(failure).split())
    return f"{type(failure).__name__}: {text[:300]}"


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Return the distance of two arrays of one shape, as a share of the second's length."""
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(got.astype(np.float64) - wide) / np.linalg.norm(wide))


# --- PyTorch ----------------------------------------------------------------------------------


def torch_peers(
    model: Any,
    example: Any,
    expected: np.ndarray,
    precision: str,
    compile_mode: str | None,
    limit_s: int,
) -> Field:
    """Return PyTorch as it comes, captured as a CUDA graph, and compiled and captured.

    `model` (in float32, on the host) is left as it is. With `compile_mode` "default" or one of
    `torch.compile`'s; compiling takes `limit_s` seconds at most.
    """
    import torch

    peers: Field = {}
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    network = copy.deepcopy(model).to("cuda", dtype)
    data = example.to("cuda")
    if data.is_floating_point():
        network = network.to(memory_format=torch.channels_last)
        data = data.to(dtype).to(memory_format=torch.channels_last)
    if hasattr(network, "encoder") and hasattr(network.encoder, "set_attn_implementation"):
        # The export wants attention spelled out; PyTorch itself is faster with its own kernel.
        network.encoder.set_attn_implementation("sdpa")

    def error_of(output: Any) -> float:
        return relative_error(output.float().cpu().numpy(), expected)

    def eager() -> None:
        with torch.inference_mode():
            network(data)
        torch.cuda.synchronize()

    try:
        with torch.inference_mode():
            error = error_of(network(data))
        peers["torch eager"] = Contestant(eager, facts={"relative_error": error})
    except Exception as failure:
        peers["torch eager"] = reason(failure)
    try:
        peers["torch cuda graph"] = _captured(network, data, error_of)
    except Exception as failure:
        peers["torch cuda graph"] = reason(failure)
    if compile_mode is not None:
        peers["torch compile, cuda graph"] = _compiled(
            network, data, error_of, compile_mode, limit_s
        )
    return peers


def _captured(network: Any, data: Any, error_of: Callable[[Any], float]) -> Contestant:
    """Return a network that is captured as one CUDA graph, the error of a replay in its facts."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode():
        with torch.cuda.stream(side):
            for _ in range(3):
                network(data)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = network(data)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    replay()
    return Contestant(
        replay, facts={"relative_error": error_of(output)}, kept=(network, data, output)
    )


def _compiled(
    network: Any, data: Any, error_of: Callable[[Any], float], mode: str, limit_s: int
) -> Contestant | str:
    """Return the network compiled in a mode, else as `torch.compile` does by itself."""
    import torch

    failures = []
    for each in dict.fromkeys((mode, "default")):
        try:
            torch.compiler.reset()
            with _time_limit(limit_s):
                compiled = torch.compile(network, mode=each)
                with torch.inference_mode():
                    compiled(data)
                contestant = _captured(compiled, data, error_of)
        except Exception as failure:
            failures.append(f"{each}: {reason(failure)}")
            continue
        contestant.facts["mode"] = each
        if failures:
            contestant.facts["failed_before"] = failures
        return contestant
    return "; ".join(failures)


@contextmanager
def _time_limit(limit_s: int) -> Iterator[None]:
    """Raise TimeoutError within the body after so long; for the main thread only."""

    def over(*_: object) -> None:
        raise TimeoutError(f"not done after {limit_s} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- ONNX Runtime -----------------------------------------------------------------------------


def why_no_onnxruntime() -> str:
    """Return why ONNX Runtime's CUDA provider can not be a peer here; empty if it can."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "the package onnxruntime is not installed"
    try:
        import onnxruntime

        offered = onnxruntime.get_available_providers()
    except Exception as failure:
        return reason(failure)
    if CUDA not in offered:
        return f"onnxruntime {onnxruntime.__version__} is here, but without {CUDA}"
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=180
        )
    except (OSError, subprocess.SubprocessError) as failure:
        return reason(failure)
    if probe.returncode:
        last = " ".join(probe.stderr.split())[-400:]
        return f"{CUDA} does not run here (exit {probe.returncode}): {last}"
    try:
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
    except Exception as failure:
        return reason(failure)
    return ""


def onnxruntime_peers(
    path: Path,
    architecture: str | None,
    example: np.ndarray,
    expected: np.ndarray,
    precision: str,
    export_half: Callable[[Path], object] | None,
    provider: str = CUDA,
) -> Field:
    """Return ONNX Runtime with and without its CUDA graph, inputs and outputs on the device.

    `path` is the model in float32, or in QDQ form for int8. `architecture` (`bert`, `vit`) has it
    first go through `onnxruntime.transformers`, as its users do; `export_half` writes a float16
    file, where PyTorch is there to do it.
    """
    variants: dict[str, dict[str, str]] = {
        "onnxruntime": {},
        "onnxruntime cuda graph": {"enable_cuda_graph": "1"},
    }
    if example.ndim == 4:
        variants["onnxruntime cuda graph, nhwc"] = {"enable_cuda_graph": "1", "prefer_nhwc": "1"}
    if precision not in ("fp16", "tf32", "fp32", "int8"):
        return dict.fromkeys(variants, f"not run in {precision}")
    options = {"use_tf32": "1" if precision == "tf32" else "0"}
    forms = _Forms(path, architecture, precision == "fp16", export_half)
    return {
        name: _first_that_runs(forms, example, expected, options | more, provider)
        for name, more in variants.items()
    }


class _Forms:
    """Files of one model for ONNX Runtime, best first, each made when it is asked for."""

    def __init__(
        self,
        path: Path,
        architecture: str | None,
        is_half: bool,
        export_half: Callable[[Path], object] | None,
    ) -> None:
        self._made: dict[str, Path | Exception] = {}
        suffix = "half" if is_half else "single"
        self._path = path
        self._is_half = is_half
        self._architecture = architecture
        ways: dict[str, Callable[[Path], object]] = {}
        if architecture is not None:
            done = "optimised, float16" if is_half else "optimised"
            ways[f"{done} by onnxruntime.transformers"] = self._optimise
        if not is_half:
            ways["float32 file as exported"] = self._as_it_is
        else:
            if importlib.util.find_spec("onnxconverter_common") is not None:
                ways["float16 by onnxconverter_common"] = self._convert
            if export_half is not None:
                ways["float16 exported by torch"] = export_half
            ways["float16 by onnxruntime.transformers"] = self._convert_plainly
        self._ways = ways
        self._stem = path.with_suffix("").as_posix() + f"_{suffix}"

    def __iter__(self) -> Iterator[tuple[str, Path | Exception]]:
        for number, (way, write) in enumerate(self._ways.items()):
            if way not in self._made:
                target = Path(f"{self._stem}_{number}.onnx")
                try:
                    write(target)
                    self._made[way] = target
                except Exception as failure:
                    self._made[way] = failure
            yield way, self._made[way]

    def _as_it_is(self, target: Path) -> None:
        target.write_bytes(self._path.read_bytes())

    def _optimise(self, target: Path) -> None:
        from onnxruntime.transformers import optimizer

        # Both architectures are those of 12 heads on 768 channels.
        model = optimizer.optimize_model(
            str(self._path),
            model_type=self._architecture,
            num_heads=12,
            hidden_size=768,
            opt_level=0,
            use_gpu=True,
        )
        if self._is_half:
            model.convert_float_to_float16(use_symbolic_shape_infer=False, keep_io_types=False)
        model.save_model_to_file(str(target))

    def _convert_plainly(self, target: Path) -> None:
        import onnx
        from onnxruntime.transformers import float16

        model = float16.convert_float_to_float16(onnx.load(self._path), keep_io_types=False)
        onnx.save(model, target)

    def _convert(self, target: Path) -> None:
        import onnx
        from onnxconverter_common import float16

        model = float16.convert_float_to_float16(onnx.load(self._path), keep_io_types=False)
        onnx.save(model, target)


def _first_that_runs(
    forms: _Forms,
    example: np.ndarray,
    expected: np.ndarray,
    options: dict[str, str],
    provider: str,
) -> Contestant | str:
    failures = []
    for way, file in forms:
        try:
            if isinstance(file, Exception):
                raise file
            contestant = _bound_session(file, example, expected, options, provider)
        except Exception as failure:
            failures.append(f"{way}: {reason(failure)}")
            continue
        contestant.facts["model"] = way
        if failures:
            contestant.facts["failed_before"] = failures
        return contestant
    return "; ".join(failures)


def _bound_session(
    path: Path,
    example: np.ndarray,
    expected: np.ndarray,
    options: dict[str, str],
    provider: str,
) -> Contestant:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    given = [(provider, {"device_id": "0", **options})] if provider == CUDA else [provider]
    session = onnxruntime.InferenceSession(str(path), settings, providers=given)
    # It goes on with the CPU where a provider does not load.
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"the session runs on {session.get_providers()[0]}")
    device = "cuda" if provider == CUDA else "cpu"
    (taken,), made = session.get_inputs(), session.get_outputs()[0]
    array = np.ascontiguousarray(example, DTYPES[taken.type])
    source = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
    target = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
        list(expected.shape), DTYPES[made.type], device, 0
    )
    binding = session.io_binding()
    binding.bind_ortvalue_input(taken.name, source)
    binding.bind_ortvalue_output(made.name, target)

    def request() -> None:
        # Returns once the device is through: providers synchronise at the end of a run.
        session.run_with_iobinding(binding)

    # The first runs choose algorithms, and capture.
    for _ in range(4):
        request()
    error = relative_error(target.numpy(), expected)
    if not np.isfinite(error):
        raise RuntimeError(f"the result is {error} away from what is expected")
    facts = {"relative_error": error, "options": options, "version": onnxruntime.__version__}
    return Contestant(request, facts=facts)
