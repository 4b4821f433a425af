"""What the device hands out has no attribute that is the driver's: handles stay in the folder."""

import pytest

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.context import CudaContext
from aegis_pipe.device.cuda.event import CudaEvent
from aegis_pipe.device.cuda.graph import CudaGraph
from aegis_pipe.device.cuda.region import CudaRegion
from aegis_pipe.device.cuda.stream import CudaStream
from aegis_pipe.device.protocols import (
    DeviceContext,
    DeviceEvent,
    DeviceGraph,
    DeviceStream,
    Region,
)


@pytest.mark.parametrize(
    ("kind", "protocol", "own"),
    [
        (CudaContext, DeviceContext, set()),
        (CudaStream, DeviceStream, {"advance", "reached"}),
        (CudaEvent, DeviceEvent, {"is_recorded", "order", "recorded"}),
        (CudaGraph, DeviceGraph, set()),
        (CudaRegion, Region, {"reserve"}),
    ],
)
def test_nothing_is_public_beyond_the_protocol(kind: type, protocol: type, own: set[str]) -> None:
    """But for what classes of this device have for one another, in positions, not in handles."""
    found = {name for name in dir(kind) if not name.startswith("_")}
    assert found - set(dir(protocol)) == own
