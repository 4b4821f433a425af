"""The CPU device: see `context.py`; reached through `aegis_pipe.device.open_device`."""
