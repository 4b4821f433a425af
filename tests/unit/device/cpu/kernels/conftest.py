import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _silent_floating_point():
    """Kernels run with floating-point warnings off, as on the device's threads."""
    with np.errstate(all="ignore"):
        yield
