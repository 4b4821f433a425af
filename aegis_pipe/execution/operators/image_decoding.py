"""ImageDecoder.

Canonical form: ImageDecoder(encoded uint8[bytes]) -> uint8[height, width, 3 or 1], `pixel_format`
"RGB", "BGR" or "Grayscale". The size of the picture stands in the data, so the model has to
declare it; the kernel refuses another.
"""

from __future__ import annotations

from aegis_pipe.errors import DynamicShapeError
from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.execution.source_model import describe
from aegis_pipe.tensor import TensorSpec

_FORMATS = ("RGB", "BGR", "Grayscale")


def _infer(context: OperatorContext) -> list[TensorSpec]:
    raise DynamicShapeError(
        "the size of the picture depends on its data, and the model declares none",
        context=describe(context.node),
        hint="declare the output's shape in the model, or decode in a pipeline's source",
    )


def _lower(context: OperatorContext) -> Lowered:
    pixel_format = reading.text(context, "pixel_format", "RGB")
    reading.require(pixel_format in _FORMATS, context, f"`{pixel_format}` is none of {_FORMATS}")
    return Lowered("ImageDecoder", {"pixel_format": pixel_format}, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (OperatorEntry("ImageDecoder", _infer, _lower),)
