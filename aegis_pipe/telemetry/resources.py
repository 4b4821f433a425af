"""The two services a trace shows: the host, and the device it drives; viewers colour by them."""

from __future__ import annotations

from typing import Final, NamedTuple

from aegis_pipe.telemetry.config import TelemetryConfig

SCOPE_NAME: Final = "aegis_pipe"
"""The instrumentation scope of every span."""
RATIO: Final = "aegis.traces.ratio"
"""Resource attribute: the share of requests that are kept with nothing special about them."""


class Resources(NamedTuple):
    """Resource attributes of host and device spans."""

    host: dict[str, str]
    device: dict[str, str]


def make_resources(config: TelemetryConfig, run_id: bytes) -> Resources:
    """Return the attributes of both services of one run."""
    host = {
        "service.name": config.service_name,
        "service.instance.id": run_id.hex(),
        RATIO: f"{config.ratio:g}",
    }
    return Resources(host, {**host, "service.name": f"{config.service_name}/{config.device}"})
