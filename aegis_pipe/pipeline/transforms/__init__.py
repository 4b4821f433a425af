"""The table of transforms: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aegis_pipe.pipeline.parts import Transform
from aegis_pipe.pipeline.transforms.argmax import ArgMax
from aegis_pipe.pipeline.transforms.softmax import Softmax
from aegis_pipe.pipeline.transforms.top_k import TopK


def _image_to_tensor(**options: Any) -> Transform:
    # Only here, because it brings Pillow along.
    from aegis_pipe.pipeline.transforms.image_to_tensor import ImageToTensor

    return ImageToTensor(**options)


TRANSFORMS: Mapping[str, Callable[..., Transform]] = {
    "argmax": ArgMax,
    "image_to_tensor": _image_to_tensor,
    "softmax": Softmax,
    "top_k": TopK,
}
