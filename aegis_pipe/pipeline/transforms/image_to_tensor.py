"""A picture into the tensor a vision model wants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Values


class ImageToTensor:
    """`image` (uint8[height, width, 1 or 3]) -> `output` (float32, batch of one).

    The picture is resized to `size` (height, width; bilinear; left out: as it is), converted to
    `channels` (1 or 3; 0: as it is), and each pixel becomes `(pixel - mean) * scale`, in `layout`
    `NCHW` or `NHWC`.
    """

    inputs = ("image",)
    outputs = ("output",)

    def __init__(
        self,
        *,
        size: Sequence[int] | None = None,
        mean: Sequence[float] = (0.0,),
        scale: float | Sequence[float] = 1.0,
        layout: str = "NCHW",
        channels: int = 0,
    ) -> None:
        self._size = tuple(size) if size else None
        self._mean = np.asarray(mean, dtype=np.float32)
        self._scale = np.asarray(scale, dtype=np.float32)
        self._layout = layout
        self._channels = channels

    def __call__(self, values: Values) -> Values:
        """Resize, convert, normalise, lay out."""
        pixels = self._convert(values["image"]).astype(np.float32)
        for name, per_channel in (("mean", self._mean), ("scale", self._scale)):
            if per_channel.size not in (1, pixels.shape[2]):
                raise PipelineError(
                    f"`{name}` has {per_channel.size} values for {pixels.shape[2]} channels",
                    context="transform `image_to_tensor`",
                    hint="give one value, or one per channel",
                )
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
        if self._channels:
            picture = picture.convert("L" if self._channels == 1 else "RGB")
        if self._size and (picture.height, picture.width) != self._size:
            height, width = self._size
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
        return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
