"""Compare a model's outputs with those of ONNX Runtime and of ONNX's reference evaluator.

Inputs come from a file or from a seed: floats are normal, indices stay within the table they
select from, 8-bit integers use their range, other integers are 0 or 1.

What a model chooses by comparing numbers (boxes, the best five, a class) is another choice by the
least difference. If it is not the reference's, it is judged by what the reference chooses from the
same numbers, provided that these are within the tolerance; a note says so.
"""

from __future__ import annotations

import argparse
import json
import math
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aegis_pipe.cli.arguments import seed
from aegis_pipe.cli.tables import table
from aegis_pipe.clock import SystemClock
from aegis_pipe.deployment_builder import model_orders
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import device_kinds, open_device
from aegis_pipe.errors import InvalidInputError, PermanentError
from aegis_pipe.execution.deployment import ModelOrder
from aegis_pipe.execution.model_loader import LoadOptions
from aegis_pipe.manifest_check import check_manifest

if TYPE_CHECKING:
    from aegis_pipe.onnx_verification import (
        FirstDifference,
        ModelVerification,
        VerificationOptions,
    )


_PRECISIONS = ("fp32", "tf32", "fp16", "bf16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the model or manifest, inputs, shapes, tolerance, references and `--json`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", type=Path, help="an ONNX file, or a manifest (.toml)")
    parser.add_argument("--only", metavar="MODEL", help="this one of the manifest's models")
    parser.add_argument("--inputs", type=Path, help="a .npz file with one array per input")
    parser.add_argument("--seed", type=seed, default=0, help="of generated inputs (default 0)")
    parser.add_argument(
        "--shape",
        type=_shape,
        action="append",
        default=[],
        metavar="INPUT=SIZES",
        help="shape of an open input of an ONNX file, as in x=1,3,224,224",
    )
    parser.add_argument(
        "--bind",
        type=_binding,
        action="append",
        default=[],
        metavar="INPUT=VALUE",
        help="make an input of an ONNX file a constant, as in sr=16000 or scales=[1.0, 2.0]",
    )
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        help="largest difference in standard deviations of the expected output; default: "
        "0.001 for fp32, 0.01 for tf32 and fp16, 0.1 for bf16 and int8 (or a correlation of 0.95)",
    )
    parser.add_argument(
        "--reference",
        action="append",
        choices=["onnxruntime", "onnx"],
        default=[],
        help="default: both, as far as they are installed",
    )
    parser.add_argument(
        "--device", choices=list(device_kinds()), help="default: the manifest's, or cpu"
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=_PRECISIONS,
        metavar="PRECISION",
        help=f"of {', '.join(_PRECISIONS)}: what the device computes with, one after the other, "
        "each beside the same references; default: the manifest's, or fp32",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Verify every model in every precision; return 1 if one fails."""
    work = _manifest_work(options) if options.path.suffix == ".toml" else _model_work(options)
    results: list[ModelVerification] = []
    clock = SystemClock()
    with open_device(work.device, index=work.device_index, clock=clock).context as context:
        asked = tuple(dict.fromkeys(options.precision or ()))
        _check_precisions(asked, context)
        verify_model, options_type = _verification()
        stream = context.create_stream(0)
        try:
            for order, precision in work.orders:
                chosen = options_type(
                    inputs=work.inputs,
                    seed=options.seed,
                    tolerance=options.tolerance,
                    references=tuple(options.reference),
                    precisions=asked or (precision,),
                )
                of_model = verify_model(order, context, stream, clock, chosen)
                results += of_model
                if not options.json:
                    print(as_text(of_model), end="\n\n")
        finally:
            stream.close()
    if options.json:
        print(json.dumps({"models": [as_json(result) for result in results]}, indent=2))
    return 0 if all(result.passed for result in results) else 1


def _check_precisions(asked: Sequence[str], context: DeviceContext) -> None:
    """Raise PermanentError for one that the device has not got, before anything runs."""
    capabilities = context.capabilities
    has = {
        "fp32": True,
        "tf32": capabilities.tf32,
        "fp16": capabilities.half_precision,
        "bf16": capabilities.half_precision,
    }
    missing = [name for name in asked if not has[name]]
    if missing:
        raise PermanentError(
            f"{context.description.name} does not compute in {', '.join(missing)}",
            context="--precision",
            hint=f"it has {', '.join(name for name in has if has[name])}; "
            "choose another device with --device",
        )


def _verification() -> tuple[
    Callable[..., tuple[ModelVerification, ...]], type[VerificationOptions]
]:
    try:
        from aegis_pipe.onnx_verification import VerificationOptions, verify_model
    except ImportError as error:
        raise PermanentError(
            f"there is nothing to compare with: `{error.name}` is not installed",
            hint="`pip install onnx onnxruntime`",
        ) from error
    return verify_model, VerificationOptions


@dataclass(frozen=True, slots=True)
class _Work:
    device: str
    device_index: int
    orders: Sequence[tuple[ModelOrder, str]]
    """With the precision asked for."""
    inputs: dict[str, np.ndarray] | None


def _manifest_work(options: argparse.Namespace) -> _Work:
    if options.shape or options.bind:
        raise InvalidInputError(
            "a manifest says itself what shapes and constants its models have",
            hint="set `shapes` and `bind` there, or verify the ONNX file",
        )
    manifest = check_manifest(options.path)
    orders = [
        (order, section.precision)
        for order, section in zip(model_orders(manifest), manifest.models, strict=True)
        if options.only in (None, order.name)
    ]
    if not orders:
        raise InvalidInputError(
            f"the manifest has no model `{options.only}`",
            hint=f"it has {', '.join(f'`{model.name}`' for model in manifest.models)}",
        )
    if options.inputs and len(orders) > 1:
        raise InvalidInputError(
            "the manifest has several models, but inputs are those of one",
            hint="choose the model with --only",
        )
    device = options.device or manifest.device.kind
    return _Work(device, manifest.device.index, orders, _read_inputs(options.inputs))


def _model_work(options: argparse.Namespace) -> _Work:
    if options.only:
        raise InvalidInputError("--only chooses among the models of a manifest")
    inputs = _read_inputs(options.inputs)
    shapes = {name: array.shape for name, array in (inputs or {}).items()}
    shapes |= dict(options.shape)
    path = options.path
    order = ModelOrder(path.stem, path, LoadOptions(shapes, dict(options.bind), path.stem))
    return _Work(options.device or "cpu", 0, [(order, "fp32")], inputs)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    # Written so that a NaN is refused too.
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0, found {text!r}")
    return value


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `x=1,3,224,224`; a scalar is `x=`."""
    name, sizes = _assignment(text)
    try:
        return name, tuple(int(size) for size in sizes.split(",")) if sizes else ()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"`{sizes}` is no shape such as 1,3,224,224") from error


def _binding(text: str) -> tuple[str, Any]:
    """Read `sr=16000`, the constant written as in a manifest."""
    name, constant = _assignment(text)
    try:
        return name, tomllib.loads(f"value = {constant}")["value"]
    except tomllib.TOMLDecodeError as error:
        message = f"`{constant}` is no number, bool or list of them"
        raise argparse.ArgumentTypeError(message) from error


def _assignment(text: str) -> tuple[str, str]:
    # From the right: names may contain anything.
    name, _, value = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"expected INPUT=VALUE, found `{text}`")
    return name, value


def _read_inputs(path: Path | None) -> dict[str, np.ndarray] | None:
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise InvalidInputError(
            f"`{path}` can not be read: {error}",
            context="--inputs",
            hint="write it with `numpy.savez(path, input_name=array, ...)`",
        ) from error


def as_text(results: Sequence[ModelVerification]) -> str:
    """Format the verdicts on one model, one for each precision."""
    lines = [_verdict(result) for result in results]
    lines.append(_table(results))
    for result in results:
        prefix = f"{result.precision}: " if len(results) > 1 else ""
        lines += [
            f"{prefix}{output.name}: {output.note}" for output in result.outputs if output.note
        ]
        if result.first_difference is not None:
            lines.append(prefix + _where(result.first_difference))
    lines += [f"not compared: {name} {why}" for name, why in results[0].not_run.items()]
    return "\n".join(lines)


def _verdict(result: ModelVerification) -> str:
    arithmetic = result.arithmetic
    allowed = f"{arithmetic.tolerance:g} x std"
    if arithmetic.correlation_min is not None:
        allowed += f" or correlation {arithmetic.correlation_min:g}"
    # A model may be less exact than what it is computed with.
    inside = "" if arithmetic.name == result.precision else f"{result.precision} with "
    verdict = "passed" if result.passed else "FAILED"
    return f"{result.model}: {verdict} ({inside}{arithmetic.name}, tolerance {allowed})"


def _table(results: Sequence[ModelVerification]) -> str:
    rows = [
        (
            output.name,
            str(output.spec),
            result.precision,
            reference,
            _figure(difference.max_absolute),
            _figure(difference.relative),
            _figure(difference.deviations),
            _figure(difference.correlation, ".6f"),
            difference.failure or "ok",
        )
        for outputs in zip(*(result.outputs for result in results), strict=True)
        for result, output in zip(results, outputs, strict=True)
        for reference, difference in output.differences.items()
    ]
    figures = ("max |d|", "relative", "|d|/std", "corr.", "verdict")
    header = ("output", "tensor", "precision", "reference", *figures)
    return table(header, rows, left=4)


def _figure(value: float, style: str = ".2e") -> str:
    return "-" if math.isnan(value) else format(value, style)


def _where(first: FirstDifference) -> str:
    if not first.node and first.tensor:
        return (
            f"parts from {first.reference} while loading: `{first.tensor}` does not depend on "
            "the inputs here, and was computed then"
        )
    if not first.node:
        return (
            f"with every tensor kept, all agree with {first.reference}: suspect memory that is "
            "reused or written in place"
        )
    return (
        f"parts from {first.reference} at node `{first.node}` ({first.operator}, kernel "
        f"{first.kernel or 'none'}), tensor `{first.tensor}`: error {first.before:.1e} x std "
        f"before, {first.after:.1e} x std after"
    )


def as_json(result: ModelVerification) -> dict[str, Any]:
    """Return the verdict as plain values; what can not be said is null."""
    first = result.first_difference
    return {
        "name": result.model,
        "precision": result.precision,
        "passed": result.passed,
        "arithmetic": result.arithmetic.name,
        "tolerance": result.arithmetic.tolerance,
        "outputs": [
            {
                "name": output.name,
                "dtype": output.spec.dtype.name,
                "shape": list(output.spec.shape),
                "passed": output.passed,
                "note": output.note,
                "references": {
                    name: dict(_plain({**asdict(difference), "passed": difference.passed}))
                    for name, difference in output.differences.items()
                },
            }
            for output in result.outputs
        ],
        "not_run": dict(result.not_run),
        "first_difference": first and dict(_plain(asdict(first))),
    }


def _plain(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values as JSON has them, which knows neither NaN nor infinity."""
    for name, value in values.items():
        yield name, None if isinstance(value, float) and not math.isfinite(value) else value
