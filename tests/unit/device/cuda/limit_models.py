"""Models of one operator each whose data lie on its limit: roundings alone decide the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from tests.unit.pass_driver import model_of

Case = tuple[onnx.ModelProto, dict[str, np.ndarray]]
IMAGES = 200


def boxes() -> Case:
    """Pairs of boxes of which each has a third of their union in common, and that is the limit."""
    random = np.random.default_rng(1)
    low = random.uniform(0, 300, (IMAGES, 1, 2))
    side = random.uniform(1, 300, (IMAGES, 1, 2))
    moved = np.concatenate([low, low + side * [0.5, 0]], axis=1)
    corners = np.concatenate([moved, moved + side], axis=2).astype(np.float32)
    scores = np.tile(np.float32([0.9, 0.8]), (IMAGES, 1, 1))
    limits = {"most": np.array([2]), "overlap": np.float32([1 / 3]), "least": np.float32([0])}
    model = model_of(
        f"(float[{IMAGES},2,4] boxes, float[{IMAGES},1,2] scores) => (int64[n,3] kept) "
        "{ kept = NonMaxSuppression (boxes, scores, most, overlap, least) }",
        limits,
    )
    return model, {"boxes": corners, "scores": scores}


def points() -> Case:
    """Points in the middle between two elements, of which one is the nearest."""
    image = np.arange(97, dtype=np.float32).reshape(1, 1, 1, 97)
    across = (2 * np.arange(1, 97) / 97 - 1).astype(np.float32)
    grid = np.stack([across, np.zeros_like(across)], axis=-1)[None, None]
    model = model_of(
        "(float[1,1,1,97] x, float[1,1,96,2] grid) => (float[1,1,1,96] y) "
        '{ y = GridSample <mode="nearest", align_corners=0> (x, grid) }'
    )
    return model, {"x": image, "grid": grid}


CASES: Mapping[str, Callable[[], Case]] = {
    "NonMaxSuppression": boxes,
    "GridSample": points,
}
