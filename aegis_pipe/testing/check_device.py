"""What every device has to do: run `check_device` against a new one, or each check by itself.

    @pytest.mark.parametrize("name", DEVICE_CHECKS)
    def test_device(name):
        DEVICE_CHECKS[name](open_my_device)

The checks use the protocols only, and the operators Add, Relu and Identity on float32. A check
that needs a kernel to fail, or to hold a stream still, uses a reference function; on a device
that refuses those, it checks the refusal and what can be seen without.
"""

from __future__ import annotations

from aegis_pipe.testing.device_checks import closing, failing, memory, ordering, running
from aegis_pipe.testing.device_checks.bench import DEVICE_CHECKS, OpenDevice

__all__ = ["AREAS", "DEVICE_CHECKS", "OpenDevice", "check_device"]

AREAS = (memory, ordering, running, failing, closing)
"""What is checked; importing them has filled the table."""


def check_device(open_device: OpenDevice) -> None:
    """Run every check; AssertionError says what a device does wrong."""
    for check in DEVICE_CHECKS.values():
        check(open_device)
