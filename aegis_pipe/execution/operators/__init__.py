"""What execution knows about each operator; one module a family.

A new family is one new module with `ENTRIES` and one line here.
"""

from aegis_pipe.execution.operators import (
    attention,
    casting,
    convolution,
    data_dependent,
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
    reshaping,
    softmax,
    transformer_blocks,
)
from aegis_pipe.execution.operators.table import OperatorTable

_FAMILIES = (
    attention,
    casting,
    convolution,
    data_dependent,
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
    reshaping,
    softmax,
    transformer_blocks,
)

OPERATORS = OperatorTable()
for _family in _FAMILIES:
    OPERATORS.register(*_family.ENTRIES)
