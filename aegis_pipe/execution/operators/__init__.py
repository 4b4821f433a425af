"""What execution knows about each operator; one module a family."""

from aegis_pipe.execution.operators.table import OperatorTable

OPERATORS = OperatorTable()
