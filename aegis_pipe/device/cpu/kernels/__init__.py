"""The CPU device's kernels; one module a family.

A new family is one new module with `KERNEL_FAMILY` and one line here. Families are registered
in this order, and of the kernels of one operator the first that accepts a request runs it.
"""

from aegis_pipe.device.cpu.kernels import (
    casting,
    classic_ml,
    elementwise,
    generators,
    indexing,
    layout,
    quantisation,
    reductions,
    resizing,
    top_k,
    unary_functions,
)
from aegis_pipe.device.cpu.kernels.registry import KERNELS

_FAMILIES = (
    casting,
    classic_ml,
    elementwise,
    generators,
    indexing,
    layout,
    quantisation,
    reductions,
    resizing,
    top_k,
    unary_functions,
)

for _family in _FAMILIES:
    KERNELS.register(*_family.KERNEL_FAMILY)
