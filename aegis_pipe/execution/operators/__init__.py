"""What execution knows about each operator; one module a family.

A new family is one new module with `ENTRIES` and one line here.
"""

from aegis_pipe.execution.operators import (
    casting,
    classic_ml,
    data_dependent,
    elementwise,
    generators,
    indexing,
    layout,
    quantisation,
    reductions,
    reshaping,
    resizing,
)
from aegis_pipe.execution.operators.table import OperatorTable

_FAMILIES = (
    casting,
    classic_ml,
    data_dependent,
    elementwise,
    generators,
    indexing,
    layout,
    quantisation,
    reductions,
    resizing,
    reshaping,
)

OPERATORS = OperatorTable()
for _family in _FAMILIES:
    OPERATORS.register(*_family.ENTRIES)
