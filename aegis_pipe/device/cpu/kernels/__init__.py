"""The CPU device's kernels; one module a family.

A new family is one new module with `KERNEL_FAMILY` and one line here. Families are registered
in this order, and of the kernels of one operator the first that accepts a request runs it.
"""

from aegis_pipe.device.cpu.kernels import (
    attention,
    block_quantised,
    channels_last,
    convolution,
    decoder_attention,
    determinant,
    dropout,
    einsum,
    feature_preparation,
    image_blocks,
    linear_models,
    losses,
    matrix_products,
    normalisation,
    placement,
    pooling,
    quantised_arithmetic,
    quantised_layers,
    quantised_products,
    recurrent,
    regions,
    sampling,
    softmax,
    spectra,
    state_space,
    transformer_blocks,
    tree_ensembles,
)
from aegis_pipe.device.cpu.kernels.registry import KERNELS

_FAMILIES = (
    attention,
    block_quantised,
    channels_last,
    convolution,
    decoder_attention,
    determinant,
    dropout,
    einsum,
    feature_preparation,
    image_blocks,
    linear_models,
    losses,
    matrix_products,
    normalisation,
    placement,
    pooling,
    quantised_arithmetic,
    quantised_layers,
    quantised_products,
    recurrent,
    regions,
    sampling,
    softmax,
    spectra,
    state_space,
    transformer_blocks,
    tree_ensembles,
)

for _family in _FAMILIES:
    KERNELS.register(*_family.KERNEL_FAMILY)
