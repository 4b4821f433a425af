"""A picture into the tensor a vision model wants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Values


class ImageToTensor:
    """`input` (uint8[height, width, 1 or 3]) -> `output` (float32, batch of one).

    The picture is resized to `size` (height, width; bilinear), converted to `channels` (`RGB`,
    `BGR` or `GRAY`), and each pixel becomes `(pixel - mean) * scale`, in `layout` `NCHW` or `NHWC`.
    """

    inputs = ("input",)
    outputs = ("output",)

    def __init__(
        self,
        *,
        size: Sequence[int],
        mean: Sequence[float] = (0.0,),
        scale: Sequence[float] = (1 / 255,),
        layout: str = "NCHW",
        channels: str = "RGB",
    ) -> None:
        self._height, self._width = size
        self._channels = channels
        self._layout = layout
        self._mean = self._per_channel("mean", mean)
        self._scale = self._per_channel("scale", scale)

    def _per_channel(self, name: str, values: Sequence[float]) -> np.ndarray:
        count = 1 if self._channels == "GRAY" else 3
        if len(values) not in (1, count):
            raise PipelineError(
                f"`{name}` has {len(values)} values for {count} channels",
                context="transform `image_to_tensor`",
                hint="give one value, or one per channel",
            )
        return np.asarray(values, dtype=np.float32)

    def __call__(self, values: Values) -> Values:
        """Resize, convert, normalise, lay out."""
        pixels = self._convert(values["input"]).astype(np.float32)
        tensor = (pixels - self._mean) * self._scale
        if self._layout == "NCHW":
            tensor = tensor.transpose(2, 0, 1)
        return {"output": np.ascontiguousarray(tensor[np.newaxis])}

    def _convert(self, image: np.ndarray) -> np.ndarray:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise PipelineError(
                f"expected uint8[height, width, 1 or 3], found {image.dtype}{list(image.shape)}",
                context="transform `image_to_tensor`",
                hint="connect it to an image source",
            )
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        picture = picture.convert("L" if self._channels == "GRAY" else "RGB")
        if picture.size != (self._width, self._height):
            picture = picture.resize((self._width, self._height), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
        if self._channels == "GRAY":
            return pixels[:, :, np.newaxis]
        return pixels[:, :, ::-1] if self._channels == "BGR" else pixels
