"""The CUDA device's kernels; one module a family, asked in this order.

A new family is one new module with `KERNEL_FAMILY` and one line here.
"""

from aegis_pipe.device.cuda.kernels import (
    attention,
    batch_normalisation,
    casting,
    data_dependent,
    depthwise,
    determinant,
    elementwise,
    indexing,
    layout,
    losses,
    library_convolutions,
    library_products,
    products,
    quantisation,
    quantised_layers,
    quantised_products,
    recurrent,
    regions,
    resizing,
    rows,
    sampling,
    scans,
    scattering,
    scored_attention,
    selection,
    spectra,
    state_space,
    windows,
)
from aegis_pipe.device.cuda.kernels.registry import KernelTable

_FAMILIES = (
    attention,
    elementwise,
    layout,
    losses,
    rows,
    sampling,
    scans,
    scattering,
    scored_attention,
    selection,
    spectra,
    state_space,
    library_products,
    data_dependent,
    depthwise,
    determinant,
    library_convolutions,
    products,
    windows,
    indexing,
    batch_normalisation,
    casting,
    quantisation,
    quantised_layers,
    quantised_products,
    recurrent,
    regions,
    resizing,
)

KERNELS = KernelTable()
for _family in _FAMILIES:
    KERNELS.register(*_family.KERNEL_FAMILY)
