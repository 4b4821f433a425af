"""The table of transforms: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aegis_pipe.pipeline.parts import Transform
from aegis_pipe.pipeline.transforms.argmax import ArgMax
from aegis_pipe.pipeline.transforms.image_to_tensor import ImageToTensor
from aegis_pipe.pipeline.transforms.softmax import Softmax
from aegis_pipe.pipeline.transforms.top_k import TopK

TRANSFORMS: Mapping[str, Callable[..., Transform]] = {
    "argmax": ArgMax,
    "image_to_tensor": ImageToTensor,
    "softmax": Softmax,
    "top_k": TopK,
}
