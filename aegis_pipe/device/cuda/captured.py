"""What is launched besides models: as graphs, too, for one launch.

Once a process has launched a graph, some eight kernels or fills that it enqueues directly make
later launches of graphs slower for good: measured on an H100 (driver 580), by 0.3 us for every
kernel of cuBLASLt, which is 8 % of BERT-base or ViT-B/16 with one request. Launches of graphs and
copies from and to the host do not. So nothing here is enqueued directly.
"""

from __future__ import annotations

from collections.abc import Callable

from aegis_pipe.device.cuda import driver


def captured(
    stream: int, enqueue: Callable[[], None], change: Callable[[int], None] | None = None
) -> int:
    """Return a launchable of what `enqueue` puts on the stream, to be destroyed by the caller.

    `change` gets the recorded graph before. Kernels that are loaded when they are first used may
    be.
    """
    driver.begin_capture(stream, may_load=True)
    try:
        enqueue()
    except BaseException:
        # The capture has to end, whatever happened within.
        driver.abandon_capture(stream)
        raise
    graph = driver.end_capture(stream)
    if change is not None:
        change(graph)
    return driver.instantiate(graph)


def run(stream: int, enqueue: Callable[[], None]) -> None:
    """Run what `enqueue` puts on the stream, once, and wait."""
    launchable = captured(stream, enqueue)
    try:
        driver.launch_graph(launchable, stream)
        driver.synchronise_stream(stream)
    finally:
        driver.destroy_graph(launchable)
