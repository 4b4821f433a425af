"""The checks of a device, a file for each thing that a device has to do."""
