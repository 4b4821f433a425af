"""What execution knows about each operator; one module a family.

A new family is one new module with `ENTRIES` and one line here.
"""

from aegis_pipe.execution.operators import (
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
from aegis_pipe.execution.operators.table import OperatorTable

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

OPERATORS = OperatorTable()
for _family in _FAMILIES:
    OPERATORS.register(*_family.ENTRIES)
