"""What execution knows about each operator; one module a family.

A new family is one new module with `ENTRIES` and one line here.
"""

from aegis_pipe.execution.operators import (
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
from aegis_pipe.execution.operators.table import OperatorTable

_FAMILIES = (
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

OPERATORS = OperatorTable()
for _family in _FAMILIES:
    OPERATORS.register(*_family.ENTRIES)
