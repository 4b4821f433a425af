"""Image files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Values
from aegis_pipe.pipeline.sources.files import FileItems, list_files

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageSource:
    """Yields `image` (uint8[height, width, channels], 1 or 3 of them), `name` and `label`.

    `label` (int64 scalar) is there only with `labels="prefix"`: the number before the first `-`
    of the file's name. `passes` is how many times to go through the files; 0: for ever.
    """

    def __init__(
        self, *, path: Path, pattern: str = "*", passes: int = 1, labels: str = "none"
    ) -> None:
        self._passes = passes
        self._labelled = labels == "prefix"
        self._files = list_files(path, pattern, SUFFIXES, "images")
        for file in self._files if self._labelled else ():
            _label(file)

    @property
    def outputs(self) -> tuple[str, ...]:
        """`image`, `name` and, if labelled, `label`."""
        return ("image", "name", "label") if self._labelled else ("image", "name")

    def items(self) -> Iterator[Values]:
        """Read the files, each when its turn comes."""
        return FileItems(self._files, self._passes, self._item)

    def _item(self, file: Path) -> Values:
        values = {"image": _read(file), "name": np.array(file.name)}
        return values | ({"label": _label(file)} if self._labelled else {})


def _read(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            mode = "L" if image.mode in ("1", "L", "I;16") else "RGB"
            pixels = np.asarray(image.convert(mode), dtype=np.uint8)
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise PipelineError(
            f"`{file}` can not be read as an image: {error}",
            context="source `images`",
            hint="remove the file or narrow `pattern`",
        ) from error
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def _label(file: Path) -> np.ndarray:
    prefix = file.name.partition("-")[0]
    if not prefix.isdecimal():
        raise PipelineError(
            f"`{file.name}` has no number before its first `-`",
            context="source `images`, `labels`",
            hint="name files like `7-0001.png`, or leave `labels` out",
        )
    return np.array(int(prefix), dtype=np.int64)
