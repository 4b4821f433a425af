"""Layer 1: devices behind the protocols of `protocols.py`, opened through `open_device`."""

from aegis_pipe.device.registry import (
    DEVICE_KINDS,
    DeviceKind,
    OpenedDevice,
    device_kinds,
    open_device,
)

__all__ = ["DEVICE_KINDS", "DeviceKind", "OpenedDevice", "device_kinds", "open_device"]
