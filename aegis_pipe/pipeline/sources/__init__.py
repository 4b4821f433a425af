"""The table of sources: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aegis_pipe.pipeline.parts import Source
from aegis_pipe.pipeline.sources.images import ImageSource
from aegis_pipe.pipeline.sources.npz import NpzSource
from aegis_pipe.pipeline.sources.synthetic import SyntheticSource

SOURCES: Mapping[str, Callable[..., Source]] = {
    "images": ImageSource,
    "npz": NpzSource,
    "synthetic": SyntheticSource,
}
