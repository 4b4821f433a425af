"""Random cases, larger than ONNX's own, against ONNX Runtime; and what data may not be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from aegis_pipe.errors import InvalidModelError, KernelError
from tests.unit.kernel_driver import drive, lower, make_node, operator_node, run_onnxruntime

HIDDEN_BYTES_MAX = 200 << 10


def _random(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def _compare(
    proto: onnx.NodeProto,
    values: Sequence[np.ndarray | None],
    *,
    opset: int = 20,
    atol: float = 1e-5,
    rtol: float = 1e-5,
) -> None:
    driven = drive(operator_node(proto, opset), values)
    assert driven is not None
    expected = run_onnxruntime(proto, values, opset)
    results = [array for array in driven.outputs if array is not None]
    for actual, wanted in zip(results, expected, strict=True):
        assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_grid_sample(mode: str, padding: str, align: int) -> None:
    grid = (_random(2, 70, 80, 2) * 1.5).astype(np.float32)
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": align}
    _compare(make_node("GridSample", 2, **attributes), [_random(2, 3, 13, 17), grid], atol=2e-4)


def test_contributed_grid_sample() -> None:
    values = [_random(1, 2, 9, 8), _random(1, 5, 6, 2)]
    for mode in ("bilinear", "nearest", "bicubic"):
        proto = make_node("GridSample", 2, domain="com.microsoft", mode=mode)
        _compare(proto, values, atol=1e-4)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_grid_sample_of_a_volume(mode: str, padding: str) -> None:
    grid = (_random(2, 4, 5, 6, 3) * 1.5).astype(np.float32)
    proto = make_node("GridSample", 2, mode=mode, padding_mode=padding)
    _compare(proto, [_random(2, 3, 7, 8, 9), grid], atol=2e-4)


def test_grid_sample_far_outside_and_nowhere() -> None:
    grid = np.array([[[[np.inf, 0.0], [-1e30, 3.0], [np.nan, np.nan], [0.0, 0.0]]]], np.float32)
    driven = drive(operator_node(make_node("GridSample", 2), 20), [_random(1, 1, 5, 5), grid])
    assert driven is not None
    np.testing.assert_array_equal(driven.outputs[0][0, 0, 0, :3], 0)
    assert driven.outputs[0][0, 0, 0, 3] == _random(1, 1, 5, 5)[0, 0, 2, 2]


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 5, 7), (2, 3, 4, 5, 6)])
def test_affine_grid(size: tuple[int, ...], align: int) -> None:
    rank = len(size) - 2
    values = [_random(2, rank, rank + 1), np.array(size)]
    _compare(make_node("AffineGrid", 2, align_corners=align), values)


def test_a_single_row_lies_in_the_middle_of_an_affine_grid() -> None:
    values = [np.array([[[1, 0, 0], [0, 1, 0]]], np.float32), np.array([1, 3, 1, 3])]
    for align, outermost in ((0, 2 / 3), (1, 1)):
        driven = drive(operator_node(make_node("AffineGrid", 2, align_corners=align), 20), values)
        assert driven is not None
        expected = [[[[-outermost, 0], [0, 0], [outermost, 0]]]]
        np.testing.assert_allclose(driven.outputs[0], expected, atol=1e-6)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize(
    ("group", "offset_group", "attributes"),
    [
        (1, 1, {"pads": [1, 1, 1, 1]}),
        (2, 3, {"pads": [2, 0, 1, 1], "strides": [2, 1], "dilations": [1, 2]}),
    ],
)
def test_deform_conv(
    group: int, offset_group: int, attributes: dict[str, list[int]], with_mask: bool
) -> None:
    weights = _random(4, 6 // group, 3, 2, seed=1)
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    pads = attributes["pads"]
    spatial = [
        (size + pads[i] + pads[i + 2] - (kernel - 1) * dilations[i] - 1) // strides[i] + 1
        for i, (size, kernel) in enumerate(((9, 3), (11, 2)))
    ]
    offset = _random(2, 12 * offset_group, *spatial, seed=2)
    values = [_random(2, 6, 9, 11), weights, offset, _random(4, seed=3)]
    values += [np.abs(_random(2, 6 * offset_group, *spatial, seed=4))] * with_mask
    attributes = {"group": group, "offset_group": offset_group, **attributes}
    proto = make_node("DeformConv", len(values), **attributes)
    _compare(proto, values, opset=19, atol=1e-4)


def _regions(count: int, width: float, height: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    corners = generator.uniform(-0.1, 1.1, (count, 2, 2)) * [width, height]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["half_pixel", "output_half_pixel"])
def test_roi_align(mode: str, ratio: int) -> None:
    attributes = {
        "output_height": 5,
        "output_width": 7,
        "sampling_ratio": ratio,
        "spatial_scale": 0.25,
        "coordinate_transformation_mode": mode,
    }
    regions = _regions(40, 120, 90)
    values = [_random(2, 6, 23, 30), regions, np.arange(40) % 2]
    _compare(make_node("RoiAlign", 3, **attributes), values, atol=1e-4)


def test_max_roi_pool() -> None:
    # Within the image: ONNX Runtime reads beyond it.
    regions = np.clip(_regions(30, 110, 85), 0, [110, 85, 110, 85])
    images = (np.arange(30) % 2)[:, None]
    values = [_random(2, 6, 23, 30), np.hstack([images, regions]).astype(np.float32)]
    proto = make_node("MaxRoiPool", 2, pooled_shape=[3, 4], spatial_scale=0.25)
    _compare(proto, values)


def test_regions_in_no_image() -> None:
    proto = make_node("RoiAlign", 3, output_height=2, output_width=2)
    values = [_random(2, 1, 9, 9), _regions(1, 9, 9), np.array([2])]
    with pytest.raises(KernelError, match="in image 2 of 2"):
        drive(operator_node(proto, 20), values)
    endless = np.array([[0, 0, 1e9, 4]], np.float32)
    with pytest.raises(KernelError, match="reaches over 1000000000 elements"):
        drive(operator_node(proto, 20), [values[0], endless, np.array([0])])


@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("axis", "length"), [(1, None), (2, 24), (-2, 5), (1, 16)])
def test_dft(axis: int, length: int | None, parts: int, inverse: int) -> None:
    values = [_random(2, 10, 12, parts)]
    values += [None if length is None else np.array(length), np.array(axis)]
    names = ["x", "" if length is None else "n", "axis"]
    _compare(make_node("DFT", names, inverse=inverse), values, atol=1e-4)


def test_dft_of_one_side() -> None:
    values = [_random(2, 64, 1), None, np.array(1)]
    _compare(make_node("DFT", ["x", "", "axis"], onesided=1), values, atol=1e-4)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("with_window", [False, True])
def test_stft(with_window: bool, onesided: int, parts: int) -> None:
    """ONNX Runtime is not exact for frames other than powers of 2; NumPy is."""
    signal, window = _random(2, 5000, parts), np.hanning(400).astype(np.float32)
    values = [signal, np.array(160), window if with_window else None, np.array(400)]
    names = ["signal", "step", "window" if with_window else "", "length"]
    driven = drive(operator_node(make_node("STFT", names, onesided=onesided), 17), values)
    assert driven is not None
    numbers = signal[..., 0] + (1j * signal[..., 1] if parts == 2 else 0)
    frames = np.lib.stride_tricks.sliding_window_view(numbers, 400, axis=1)[:, ::160]
    spectra = np.fft.fft(frames * window if with_window else frames)
    spectra = spectra[..., : 201 if onesided else 400]
    expected = np.stack([spectra.real, spectra.imag], axis=-1)
    np.testing.assert_allclose(driven.outputs[0], expected, rtol=1e-5, atol=1e-5)


def test_stft_of_frames_of_a_power_of_two() -> None:
    window = np.hanning(256).astype(np.float32)
    values = [_random(2, 2000, 1), np.array(64), window, np.array(256)]
    _compare(make_node("STFT", 4), values, opset=17, atol=1e-4)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
# ONNX's reference treats -1 as no label to ignore, when it comes without weights.
@pytest.mark.parametrize("ignored", [None, -5, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("operator", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_losses(operator: str, weighted: bool, ignored: int | None, reduction: str) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (4, 6, 7))
    attributes = {"reduction": reduction}
    if ignored is not None:
        attributes["ignore_index"] = ignored
        labels[0, :3] = ignored
    values = [_random(4, 5, 6, 7), labels] + [np.abs(_random(5, seed=1))] * weighted
    outputs = 2 if operator.startswith("Softmax") else 1
    proto = make_node(operator, len(values), outputs, **attributes)
    driven = drive(operator_node(proto, 13), values)
    assert driven is not None
    reference = ReferenceEvaluator(proto)
    expected = reference.run(None, dict(zip(proto.input, values, strict=True)))
    for actual, wanted in zip(driven.outputs, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def test_labels_that_are_no_classes() -> None:
    proto = make_node("NegativeLogLikelihoodLoss", 2)
    with pytest.raises(KernelError, match="labels reach from 0 to 5, but there are 5 classes"):
        drive(operator_node(proto, 13), [_random(2, 5), np.array([0, 5])])


@pytest.mark.parametrize("padded", [False, True])
def test_max_unpool_undoes_max_pool(padded: bool) -> None:
    windows = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [int(padded)] * 4}
    image = _random(2, 3, 14, 12)
    pooled, indices = run_onnxruntime(make_node("MaxPool", 1, 2, **windows), [image], 20)
    proto = make_node("MaxUnpool", 2, **windows)
    _compare(proto, [pooled, indices])
    with pytest.raises(KernelError, match="the max pool that this operator undoes"):
        drive(operator_node(proto, 20), [pooled, indices + 2 * 3 * 14 * 12])


@pytest.mark.parametrize("shape", [(7, 4), (10, 9), (5, 12)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_])
def test_center_crop_pad(dtype: type, shape: tuple[int, int]) -> None:
    values = [(_random(2, 8, 7) * 9).astype(dtype), np.array(shape)]
    proto = make_node("CenterCropPad", 2, axes=[1, -1])
    driven = drive(operator_node(proto, 18), values)
    assert driven is not None
    expected = ReferenceEvaluator(proto).run(None, dict(zip(proto.input, values, strict=True)))
    np.testing.assert_array_equal(driven.outputs[0], expected[0])


def test_determinant() -> None:
    _compare(make_node("Det", 1), [_random(4, 3, 5, 5)], atol=1e-4)
    _compare(make_node("Det", 1), [_random(5, 5)], atol=1e-4)


def test_tensor_scatter_beyond_the_cache() -> None:
    proto = make_node("TensorScatter", 3)
    values = [_random(2, 3, 8, 4), _random(2, 3, 2, 4), np.array([6, 7])]
    with pytest.raises(KernelError, match="an update of 2 at 7 does not fit a cache of 8"):
        drive(operator_node(proto, 24), values)
    circular = make_node("TensorScatter", 3, mode="circular")
    driven = drive(operator_node(circular, 24), values)
    assert driven is not None
    np.testing.assert_array_equal(driven.outputs[0][1, :, 7], values[1][1, :, 0])
    np.testing.assert_array_equal(driven.outputs[0][1, :, 0], values[1][1, :, 1])


def test_linear_attention_wants_the_operands_of_its_rule() -> None:
    attributes = {"q_num_heads": 2, "kv_num_heads": 2, "update_rule": "gated"}
    node = operator_node(make_node("LinearAttention", 3, 2, **attributes), 27)
    with pytest.raises(InvalidModelError, match="`gated` does not fit the operands given"):
        lower(node, [_random(1, 3, 8)] * 3)


IMAGE = _random(2, 32, 96, 96)
GRID = np.random.default_rng(0).uniform(-1, 1, (2, 200, 200, 2)).astype(np.float32)
LARGE = {
    "GridSample": ({}, [IMAGE, GRID]),
    "AffineGrid": ({}, [_random(2, 2, 3), np.array([2, 3, 300, 300])]),
    "DeformConv": ({}, [IMAGE, _random(16, 32, 1, 1), _random(2, 2, 96, 96)]),
    "RoiAlign": (
        {"output_height": 14, "output_width": 14},
        [IMAGE, _regions(40, 90, 90), np.arange(40) % 2],
    ),
    "CenterCropPad": ({}, [IMAGE, np.array([2, 32, 100, 90])]),
    "TensorScatter": ({}, [IMAGE, IMAGE[:, :, :4], np.array([3, 90])]),
    "MaxUnpool": (
        {"kernel_shape": [1, 1]},
        [IMAGE, np.arange(IMAGE.size).reshape(IMAGE.shape)],
    ),
    "SwiGLU": ({}, [IMAGE, IMAGE]),
    "CausalConvWithState": ({"activation": "silu"}, [IMAGE[0], _random(96, 1, 4)]),
    "LinearAttention": (
        {"q_num_heads": 8, "kv_num_heads": 8, "update_rule": "linear"},
        [_random(2, 96, 512)] * 3,
    ),
    "STFT": ({}, [_random(1, 100000, 1), np.array(160), np.hanning(400).astype(np.float32)]),
}


@pytest.mark.parametrize("operator", LARGE)
def test_nothing_large_is_hidden(operator: str) -> None:
    attributes, values = LARGE[operator]
    driven = drive(operator_node(make_node(operator, len(values), **attributes), 27), values)
    assert driven is not None
    assert max(array.nbytes for array in driven.outputs) > HIDDEN_BYTES_MAX
    assert driven.hidden_bytes < HIDDEN_BYTES_MAX
