"""Pictures out of their file formats, decoded by Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelRequest

_MODES = {"RGB": "RGB", "BGR": "RGB", "Grayscale": "L"}


def _accepts(request: KernelRequest) -> bool:
    specs = (operands.input_spec(request, 0), operands.output_spec(request))
    return all(spec.dtype == np.uint8 for spec in specs) and len(specs[1].shape) == 3


def _refused(request: KernelRequest, message: str) -> KernelError:
    return KernelError(
        message,
        context=f"node `{request.node}` (ImageDecoder)",
        hint="give an encoded picture of the size that the model declares",
    )


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    encoded, result = operands.required(inputs), operands.required(outputs)
    pixel_format = operands.text(request, "pixel_format")
    # Models that decode pictures are rare: nobody else waits for this import.
    from PIL import Image, UnidentifiedImageError

    def run() -> None:
        try:
            picture = Image.open(io.BytesIO(encoded.tobytes())).convert(_MODES[pixel_format])
        except (UnidentifiedImageError, OSError) as error:
            raise _refused(request, f"the data is no picture: {error}") from error
        pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
        if pixels.shape != result.shape:
            raise _refused(request, f"the picture is {pixels.shape}, not {result.shape}")
        np.copyto(result, pixels[:, :, ::-1] if pixel_format == "BGR" else pixels)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel("image_decoder", ("ImageDecoder",), _bind, accepts=_accepts),
)
