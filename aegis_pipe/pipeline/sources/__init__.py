"""The table of sources: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aegis_pipe.pipeline.parts import Source
from aegis_pipe.pipeline.sources.npz import NpzSource
from aegis_pipe.pipeline.sources.synthetic import SyntheticSource


def _images(**options: Any) -> Source:
    # Only here, because it brings Pillow along.
    from aegis_pipe.pipeline.sources.images import ImageSource

    return ImageSource(**options)


SOURCES: Mapping[str, Callable[..., Source]] = {
    "images": _images,
    "npz": NpzSource,
    "synthetic": SyntheticSource,
}
