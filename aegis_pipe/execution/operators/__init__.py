"""What execution knows about each operator; one module a family.

A new family is one new module with `ENTRIES` and one line here.
"""

from aegis_pipe.execution.operators import (
    convolution,
    matrix_products,
    normalisation,
    pooling,
)
from aegis_pipe.execution.operators.table import OperatorTable

_FAMILIES = (
    convolution,
    matrix_products,
    normalisation,
    pooling,
)

OPERATORS = OperatorTable()
for _family in _FAMILIES:
    OPERATORS.register(*_family.ENTRIES)
