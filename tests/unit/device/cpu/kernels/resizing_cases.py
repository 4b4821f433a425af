"""Cases for the kernels that resize."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from tests.unit.device.cpu.kernels.case import Case, random
from tests.unit.kernel_driver import make_node

_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def _resize(
    shape: Sequence[int],
    sizes: Sequence[int],
    mode: str,
    *,
    dtype: str = "float32",
    like_onnxruntime: bool = True,
    in_turn: bool = False,
    **attributes: object,
) -> Case:
    data = (random(*shape) * 50).astype(dtype)
    node = make_node("Resize", ["i0", "", "", "i3"], mode=mode, **attributes)
    kernel = f"native.resize.{'repeat' if mode == 'nearest' else 'interpolate'}"
    kernel += "_in_turn" * in_turn
    values = [data, None, None, np.array(sizes, np.int64)]
    return Case(kernel, node, values, (3,), like_onnxruntime=like_onnxruntime, tolerance=2e-5)


def _crop(mode: str, shape: Sequence[int], sizes: Sequence[int], roi: Sequence[float]) -> Case:
    """Parts of what is cropped lie outside; NumPy's kernels are the witness."""
    node = make_node(
        "Resize",
        ["i0", "i1", "", "i3"],
        mode=mode,
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=7.5,
    )
    kernel = f"native.resize.{'repeat' if mode == 'nearest' else 'interpolate'}"
    values = [random(*shape), np.array(roi, np.float32), None, np.array(sizes, np.int64)]
    return Case(kernel, node, values, (1, 3), like_onnxruntime=False)


def cases() -> dict[str, Case]:
    found = {}
    for mode, coordinates in itertools.product(("nearest", "linear", "cubic"), _COORDINATES):
        for sizes in ((9, 37), (4, 3), (5, 26), (1, 1), (11, 13), (5, 17)):
            name = f"{mode} {coordinates} to {sizes}"
            found[name] = _resize(
                (2, 3, 5, 13),
                (2, 3, *sizes),
                mode,
                coordinate_transformation_mode=coordinates,
            )
    for mode in ("linear", "cubic"):
        found[f"{mode} antialiased"] = _resize((1, 2, 40, 90), (1, 2, 7, 31), mode, antialias=1)
        found[f"{mode} along the first"] = _resize(
            (7, 50), (11, 50), mode, like_onnxruntime=mode == "linear"
        )
        for channels in (3, 16, 21):
            found[f"{mode} of {channels} channels last"] = _resize(
                (2, 6, 7, channels), (2, 9, 15, channels), mode, like_onnxruntime=False
            )
    found["linear symmetric"] = _resize(
        (1, 2, 6, 7), (1, 2, 9, 4), "linear", coordinate_transformation_mode="half_pixel_symmetric"
    )
    found["linear along one"] = _resize((2, 3, 40), (2, 3, 70), "linear")
    found["cubic without outside"] = _resize(
        (1, 2, 6, 7), (1, 2, 9, 20), "cubic", exclude_outside=1
    )
    for dtype in ("uint8", "int8", "int32", "float32", "int16", "float16", "int64"):
        for sizes in ((10, 46), (15, 11), (5, 50)):
            found[f"nearest {dtype} to {sizes}"] = _resize(
                (2, 5, 23), (2, *sizes), "nearest", dtype=dtype, like_onnxruntime=False
            )
    for channels, dtype in ((3, "uint8"), (4, "uint8"), (3, "float32"), (20, "float32")):
        found[f"nearest {channels} {dtype} last"] = _resize(
            (2, 6, 7, channels),
            (2, 9, 14, channels),
            "nearest",
            dtype=dtype,
            like_onnxruntime=False,
        )
    for rounds in ("floor", "ceil", "round_prefer_ceil"):
        found[f"nearest {rounds}"] = _resize(
            (1, 2, 6, 7), (1, 2, 9, 17), "nearest", nearest_mode=rounds, like_onnxruntime=False
        )
    for mode in ("nearest", "linear", "cubic"):
        found[f"{mode} cropped"] = _crop(
            mode, (1, 2, 6, 30), (1, 2, 9, 20), (0, 0, -0.2, 0.1, 1, 1, 0.8, 1.3)
        )
        found[f"{mode} cropped and turned"] = _crop(
            mode, (1, 2, 6, 30), (1, 2, 9, 20), (0, 0, 1.2, 0.9, 1, 1, 0.1, -0.2)
        )
        found[f"{mode} cropped last"] = _crop(
            mode, (1, 6, 8, 18), (1, 9, 5, 18), (0, -0.1, 0.3, 0, 1, 1.2, 1.3, 1)
        )
    for mode in ("nearest", "linear", "cubic"):
        for before, after in (
            ((2, 3, 4, 5, 6), (2, 3, 7, 9, 5)),
            ((1, 2, 6, 5, 20), (1, 2, 9, 3, 33)),
            ((2, 5, 4, 7), (2, 8, 4, 11)),
            ((3, 2, 5, 21), (4, 2, 3, 21)),
            ((3, 2, 5, 4), (4, 3, 6, 7)),
        ):
            found[f"{mode} {before} to {after}"] = _resize(
                before,
                after,
                mode,
                like_onnxruntime=mode == "nearest" or (mode == "linear" and len(before) == 5),
                in_turn=True,
            )
    found["linear antialiased in turn"] = _resize(
        (1, 2, 9, 8, 40),
        (1, 2, 4, 5, 13),
        "linear",
        antialias=1,
        like_onnxruntime=False,
        in_turn=True,
    )
    for dtype in ("uint8", "float16", "int64"):
        found[f"nearest {dtype} in turn"] = _resize(
            (2, 6, 3, 7),
            (2, 9, 3, 17),
            "nearest",
            dtype=dtype,
            like_onnxruntime=False,
            in_turn=True,
        )
    return found


RESIZING: dict[str, Case] = {f"resize {name}": case for name, case in cases().items()}
