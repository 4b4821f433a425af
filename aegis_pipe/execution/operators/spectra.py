"""Spectra and what is needed to take them.

Canonical form, complex numbers being a last dimension of 2, real ones of 1:

    DFT(X) -> Y     `axis`, `inverse`, `onesided`, `dft_length`
    STFT(signal[N, length, 1 or 2], window[frame_length]?) -> Y[N, frames, bins, 2]
                    `frame_step`, `onesided`
    Constant()      `value`: what HannWindow, HammingWindow, BlackmanWindow and MelWeightMatrix
                    become, whose operands are known at load
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_AXIS_INPUT_OPSET = 20
_FLOATS = {1: np.float32, 10: np.float16, 11: np.float64, 16: ml_dtypes.bfloat16}
"""By ONNX's number of the element type."""
_INTEGERS = {
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    12: np.uint32,
    13: np.uint64,
}


def _scalar(context: OperatorContext, position: int, name: str) -> float:
    value = reading.static_value(context, position, name)
    reading.require(value.size == 1, context, f"`{name}` has to be one number")
    return float(value.reshape(-1)[0])


def _length(context: OperatorContext, position: int, name: str) -> int | None:
    """Return a length that is known at load, or None if it is left out."""
    if reading.optional_operand(context, position) is None:
        return None
    return int(_scalar(context, position, name))


def _dft_axis(context: OperatorContext) -> int:
    rank = len(reading.operand(context, 0, "input").shape)
    axis = reading.integer(context, "axis", 1)
    if context.node.opset >= _AXIS_INPUT_OPSET:
        given = _length(context, 2, "axis")
        axis = -2 if given is None else given
    axis = reading.resolve_axis(context, axis, rank)
    reading.require(axis < rank - 1, context, "the last dimension holds the parts of a number")
    return axis


def _dft(context: OperatorContext) -> dict[str, Attribute]:
    data, axis = reading.operand(context, 0, "input"), _dft_axis(context)
    inverse = reading.integer(context, "inverse", 0)
    onesided = reading.integer(context, "onesided", 0)
    length = _length(context, 1, "dft_length")
    if length is None:
        length = 2 * (data.shape[axis] - 1) if inverse and onesided else data.shape[axis]
    reading.require(length > 0, context, f"a transform of length {length}")
    return {"axis": axis, "inverse": inverse, "onesided": onesided, "dft_length": length}


def _infer_dft(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input")
    reading.require(
        len(data.shape) > 1 and data.shape[-1] in (1, 2), context, f"{data} is no signal"
    )
    attributes = _dft(context)
    axis, length = attributes["axis"], attributes["dft_length"]
    assert isinstance(axis, int)
    assert isinstance(length, int)
    halved = attributes["onesided"] and not attributes["inverse"]
    shape = [*data.shape]
    shape[axis] = length // 2 + 1 if halved else length
    shape[-1] = 1 if attributes["onesided"] and attributes["inverse"] else 2
    return [reading.like(data, shape)]


def _lower_dft(context: OperatorContext) -> Lowered:
    return Lowered("DFT", _dft(context), (0,))


def _stft(context: OperatorContext) -> tuple[int, int, int]:
    """Return (frame step, frame length, frames)."""
    signal = reading.operand(context, 0, "signal")
    reading.require(len(signal.shape) in (2, 3), context, f"{signal} is no signal")
    step = int(_scalar(context, 1, "frame_step"))
    window = reading.optional_operand(context, 2)
    length = _length(context, 3, "frame_length")
    if length is None:
        length = window.shape[0] if window else signal.shape[1]
    fits = window is None or window.shape == (length,)
    reading.require(
        step > 0 and 0 < length <= signal.shape[1] and fits,
        context,
        f"frames of {length} every {step} do not fit signal {signal} and window {window}",
    )
    return step, length, (signal.shape[1] - length) // step + 1


def _infer_stft(context: OperatorContext) -> list[TensorSpec]:
    signal = reading.operand(context, 0, "signal")
    _, length, frames = _stft(context)
    bins = length // 2 + 1 if reading.integer(context, "onesided", 1) else length
    return [reading.like(signal, (signal.shape[0], frames, bins, 2))]


def _lower_stft(context: OperatorContext) -> Lowered:
    step, length, _ = _stft(context)
    attributes: dict[str, Attribute] = {
        "frame_step": step,
        "frame_length": length,
        "onesided": reading.integer(context, "onesided", 1),
    }
    signal, _, window = reading.data_positions(context, 3)
    return Lowered("STFT", attributes, (signal, window))


def _element_type(context: OperatorContext) -> np.dtype:
    number = reading.integer(context, "output_datatype", 1)
    kind = _FLOATS.get(number) or _INTEGERS.get(number)
    if kind is None:
        raise reading.invalid(context, f"output_datatype {number} is no number type")
    return np.dtype(kind)


def _window(coefficients: tuple[float, ...]) -> Callable[[OperatorContext], np.ndarray]:
    """Return the sum of cosines with these coefficients, whose signs alternate."""

    def value(context: OperatorContext) -> np.ndarray:
        size = int(_scalar(context, 0, "size"))
        reading.require(size >= 0, context, f"a window of {size}")
        intervals = size if reading.integer(context, "periodic", 1) else size - 1
        angles = np.arange(size) * (2 * np.pi / max(intervals, 1))
        terms = [
            (-1) ** order * coefficient * np.cos(order * angles)
            for order, coefficient in enumerate(coefficients)
        ]
        return np.asarray(np.sum(terms, axis=0)).astype(_element_type(context))

    return value


def _mel(hertz: np.ndarray) -> np.ndarray:
    return np.asarray(2595 * np.log10(1 + hertz / 700))


def _mel_weights(context: OperatorContext) -> np.ndarray:
    """Return triangular filters between points that are equally far apart on the mel scale."""
    names = ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz")
    bins, length, rate, low, high = (_scalar(context, i, name) for i, name in enumerate(names))
    count, spectrum = int(bins), int(length) // 2 + 1
    edges = _mel(np.array([low, high]))
    points = np.arange(count + 2) * ((edges[1] - edges[0]) / (count + 2)) + edges[0]
    hertz = 700 * (10 ** (points / 2595) - 1)
    places = ((length + 1) * hertz // rate).astype(np.int64)
    weights = np.zeros((spectrum, count))
    for mel in range(count):
        first, centre, last = (int(place) for place in places[mel : mel + 3])
        rising = np.arange(first, min(centre + 1, spectrum))
        falling = np.arange(centre, min(last, spectrum))
        weights[rising, mel] = (rising - first) / (centre - first) if centre > first else 1.0
        if last > centre:
            weights[falling, mel] = (last - falling) / (last - centre)
    return weights.astype(_element_type(context))


def _constant(
    name: str, value: Callable[[OperatorContext], np.ndarray], operand_count: int
) -> OperatorEntry:
    def infer(context: OperatorContext) -> list[TensorSpec]:
        result = value(context)
        return [TensorSpec(result.dtype, result.shape)]

    def lower(context: OperatorContext) -> Lowered:
        return Lowered("Constant", {"value": value(context)}, ())

    return OperatorEntry(name, infer, lower, tuple(range(operand_count)))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("DFT", _infer_dft, _lower_dft, static_inputs=(1, 2)),
    OperatorEntry("STFT", _infer_stft, _lower_stft, static_inputs=(1, 3)),
    _constant("HannWindow", _window((0.5, 0.5)), 1),
    _constant("HammingWindow", _window((25 / 46, 21 / 46)), 1),
    _constant("BlackmanWindow", _window((0.42, 0.5, 0.08)), 1),
    _constant("MelWeightMatrix", _mel_weights, 5),
)
