"""What execution knows about each operator; one module a family.

A new family is one new module with `ENTRIES` and one line here.
"""

from aegis_pipe.execution.operators import (
    attention,
    block_quantised,
    casting,
    channels_last,
    convolution,
    data_dependent,
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
    reshaping,
    resizing,
    softmax,
    transformer_blocks,
    tree_ensembles,
)
from aegis_pipe.execution.operators.table import OperatorTable

_FAMILIES = (
    attention,
    block_quantised,
    casting,
    channels_last,
    convolution,
    data_dependent,
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
    reshaping,
    resizing,
    softmax,
    transformer_blocks,
    tree_ensembles,
)

OPERATORS = OperatorTable()
for _family in _FAMILIES:
    OPERATORS.register(*_family.ENTRIES)
