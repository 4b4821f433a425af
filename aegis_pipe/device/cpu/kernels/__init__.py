"""The CPU device's kernels; one module a family.

A new family is one new module with `KERNEL_FAMILY` and one line here. Families are registered
in this order, and of the kernels of one operator the first that accepts a request runs it.
"""

from aegis_pipe.device.cpu.kernels import (
    attention,
    compiled_convolution,
    compiled_matrix_products,
    compiled_pooling,
    compiled_normalisation,
    compiled_elementwise,
    convolution,
    dropout,
    einsum,
    image_blocks,
    matrix_products,
    normalisation,
    pooling,
    quantised_arithmetic,
    recurrent,
    softmax,
    transformer_blocks,
)
from aegis_pipe.device.cpu.kernels.registry import KERNELS

_FAMILIES = (
    # Compiled kernels are asked before the NumPy kernels of the same operators.
    compiled_convolution,
    compiled_matrix_products,
    compiled_pooling,
    compiled_normalisation,
    compiled_elementwise,
    attention,
    convolution,
    dropout,
    einsum,
    image_blocks,
    matrix_products,
    normalisation,
    pooling,
    quantised_arithmetic,
    recurrent,
    softmax,
    transformer_blocks,
)

for _family in _FAMILIES:
    KERNELS.register(*_family.KERNEL_FAMILY)
