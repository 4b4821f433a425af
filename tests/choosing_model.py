"""A model that chooses boxes by their scores, and inputs where scores alone decide."""

from __future__ import annotations

import numpy as np
import onnx.parser

BOXES = 40


def choosing_model() -> onnx.ModelProto:
    """`x` float32[1, 40, 5] -> boxes and scores -> `kept` float32[n, 4], those above a half."""
    return onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> net (float[1,40,5] x) => (float[n,4] kept) '
        "<int64[1] most = {40}, float[1] overlap = {0.5}, float[1] least = {0.5}, "
        "int64[2] parts = {4, 1}, int64[1] first = {0}> {"
        "corners, score = Split <axis = 2> (x, parts) boxes = Mul (corners, corners) "
        "likely = Sigmoid (score) scores = Transpose <perm = [0, 2, 1]> (likely) "
        "chosen = NonMaxSuppression (boxes, scores, most, overlap, least) "
        "two = Constant <value_int = 2> () place = Gather <axis = 1> (chosen, two) "
        "all = Squeeze (boxes, first) kept = Gather (all, place) }"
    )


def boxes_with_scores(scores: np.ndarray) -> np.ndarray:
    """Far apart, so that scores alone decide."""
    x = np.zeros((1, BOXES, 5), np.float32)
    x[0, :, 0] = x[0, :, 1] = np.sqrt(10 * np.arange(BOXES))
    x[0, :, 2] = x[0, :, 3] = np.sqrt(10 * np.arange(BOXES) + 5)
    x[0, :, 4] = scores
    return x
