"""Image files of a folder, in the order of their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Values

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageSource:
    """Yields `image` (uint8[height, width, channels]), `name` and, if asked for, `label`.

    `pattern` selects files (glob); `repeat` is how many times to go through them (0: for ever);
    with `labels = "prefix"` the label (int64 scalar) is the number before the first `-` of the
    file's name.
    """

    def __init__(
        self, *, path: Path, pattern: str = "*", repeat: int = 1, labels: str = "none"
    ) -> None:
        self._repeat = repeat
        self._labelled = labels == "prefix"
        if not path.is_dir():
            raise PipelineError(
                f"`{path}` is not a folder", context="source `images`", hint="check `path`"
            )
        self._files = sorted(f for f in path.glob(pattern) if f.suffix.lower() in SUFFIXES)
        if not self._files:
            raise PipelineError(
                f"no image in `{path}` matches `{pattern}`",
                context="source `images`",
                hint=f"files are recognised by their suffix: {', '.join(sorted(SUFFIXES))}",
            )
        for file in self._files if self._labelled else ():
            _label(file)

    @property
    def outputs(self) -> tuple[str, ...]:
        """`image`, `name` and, if labelled, `label`."""
        return ("image", "name", "label") if self._labelled else ("image", "name")

    def items(self) -> Iterator[Values]:
        """Read the files, each when its turn comes."""
        return _ImageIterator(self._files, self._repeat, self._labelled)


class _ImageIterator(Iterator[Values]):
    """An iterator of its own, as a generator would end at the first file that raises."""

    def __init__(self, files: list[Path], repeat: int, labelled: bool) -> None:
        self._files = files
        self._left = repeat * len(files) if repeat else None
        self._next = 0
        self._labelled = labelled

    def __next__(self) -> Values:
        if self._left is not None:
            if self._left == 0:
                raise StopIteration
            self._left -= 1
        file = self._files[self._next]
        self._next = (self._next + 1) % len(self._files)
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
