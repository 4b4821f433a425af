"""What a case for a compiled kernel is."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx

OPSET = 22


@dataclass(frozen=True)
class Case:
    kernel: str
    node: onnx.NodeProto
    values: list[np.ndarray | None] = field(repr=False)
    constants: tuple[int, ...] = ()
    opset: int = OPSET
    like_onnxruntime: bool = True
    """Whether ONNX Runtime computes the same; if not, NumPy's kernels are the only witness."""
    tolerance: float = 3e-6
    """Of differences, by the largest result or by 1."""


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
