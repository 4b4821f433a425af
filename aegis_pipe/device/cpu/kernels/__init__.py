"""The CPU device's kernels; one module a family.

A new family is one new module with `KERNEL_FAMILY` and one line here. Families are registered
in this order, and of the kernels of one operator the first that accepts a request runs it.
"""

from aegis_pipe.device.cpu.kernels import (
    attention,
    casting,
    compiled_convolution,
    compiled_elementwise,
    compiled_matrix_products,
    compiled_normalisation,
    compiled_pooling,
    convolution,
    dropout,
    einsum,
    elementwise,
    generators,
    image_blocks,
    indexing,
    layout,
    matrix_products,
    normalisation,
    pooling,
    quantisation,
    quantised_arithmetic,
    recurrent,
    reductions,
    softmax,
    top_k,
    transformer_blocks,
    unary_functions,
)
from aegis_pipe.device.cpu.kernels.registry import KERNELS

_FAMILIES = (
    # Compiled kernels are asked before the NumPy kernels of the same operators.
    compiled_convolution,
    compiled_elementwise,
    compiled_matrix_products,
    compiled_normalisation,
    compiled_pooling,
    attention,
    casting,
    convolution,
    dropout,
    einsum,
    elementwise,
    generators,
    image_blocks,
    indexing,
    layout,
    matrix_products,
    normalisation,
    pooling,
    quantisation,
    quantised_arithmetic,
    recurrent,
    reductions,
    softmax,
    top_k,
    transformer_blocks,
    unary_functions,
)

for _family in _FAMILIES:
    KERNELS.register(*_family.KERNEL_FAMILY)
