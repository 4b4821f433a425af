"""The CPU device's kernels; one module a family.

A new family is one new module with `KERNEL_FAMILY` and one line here. Families are registered
in this order, and of the kernels of one operator the first that accepts a request runs it.
"""

from aegis_pipe.device.cpu.kernels import (
    attention,
    block_quantised,
    casting,
    channels_last,
    convolution,
    decoder_attention,
    dropout,
    einsum,
    elementwise,
    feature_preparation,
    generators,
    image_blocks,
    indexing,
    layout,
    linear_models,
    matrix_products,
    normalisation,
    pooling,
    quantisation,
    quantised_arithmetic,
    quantised_layers,
    quantised_products,
    recurrent,
    reductions,
    resizing,
    softmax,
    top_k,
    transformer_blocks,
    tree_ensembles,
    unary_functions,
)
from aegis_pipe.device.cpu.kernels.registry import KERNELS

_FAMILIES = (
    attention,
    block_quantised,
    casting,
    channels_last,
    convolution,
    decoder_attention,
    dropout,
    einsum,
    elementwise,
    feature_preparation,
    generators,
    image_blocks,
    indexing,
    layout,
    linear_models,
    matrix_products,
    normalisation,
    pooling,
    quantisation,
    quantised_arithmetic,
    quantised_layers,
    quantised_products,
    recurrent,
    reductions,
    resizing,
    softmax,
    top_k,
    transformer_blocks,
    tree_ensembles,
    unary_functions,
)

for _family in _FAMILIES:
    KERNELS.register(*_family.KERNEL_FAMILY)
