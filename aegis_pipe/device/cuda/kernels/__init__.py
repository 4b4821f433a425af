"""The CUDA device's kernels; one module a family, asked in this order.

A new family is one new module with `KERNEL_FAMILY` and one line here.
"""

from aegis_pipe.device.cuda.kernels import (
    attention,
    batch_normalisation,
    convolution_products,
    depthwise,
    elementwise,
    indexing,
    layer_normalisation,
    layout,
    library_convolutions,
    library_products,
    products,
    resizing,
    rows,
    tensor_attention,
    windows,
)
from aegis_pipe.device.cuda.kernels.registry import KernelTable

_FAMILIES = (
    tensor_attention,
    attention,
    elementwise,
    layer_normalisation,
    layout,
    rows,
    library_products,
    depthwise,
    convolution_products,
    library_convolutions,
    products,
    windows,
    indexing,
    batch_normalisation,
    resizing,
)

KERNELS = KernelTable()
for _family in _FAMILIES:
    KERNELS.register(*_family.KERNEL_FAMILY)
