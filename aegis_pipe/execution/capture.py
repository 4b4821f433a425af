"""Records a model's kernel calls as device graphs, one per segment.

What a graph is, is the device's business: on the CPU a recorded list that its stream replays, on
CUDA a captured CUDA graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from aegis_pipe.device.protocols import DeviceContext, DeviceGraph, DeviceStream, Fork, KernelCall


class GraphCapture:
    """Cuts a list of bound calls into segments and records each."""

    def __init__(self, context: DeviceContext, stream: DeviceStream | None = None) -> None:
        """`stream` is what the graphs will be launched on."""
        self._context = context
        self._stream = stream

    def record(
        self, calls: Sequence[KernelCall], boundaries: Sequence[int], forks: Sequence[Fork] = ()
    ) -> tuple[DeviceGraph, ...]:
        """Record one graph per stretch; `boundaries` are the first calls of all but the first.

        Of a fork that is cut, each part is one.
        """
        edges = [0, *boundaries, len(calls)]
        return tuple(
            self._context.record(calls[first:end], self._stream, forks_within(forks, first, end))
            for first, end in itertools.pairwise(edges)
        )


def forks_within(forks: Sequence[Fork], first: int, end: int) -> tuple[Fork, ...]:
    """Return what there is of forks in a stretch of calls, by positions in it."""
    found = []
    for fork in forks:
        parts = [tuple([each - first for each in part if first <= each < end]) for part in fork]
        branches = tuple(filter(None, parts))
        if len(branches) > 1:
            found.append(branches)
    return tuple(found)


def cut_into_segments(durations_ns: Sequence[int], max_block_ns: int) -> tuple[int, ...]:
    """Return where to cut so that no segment lasts longer than `max_block_ns`, greedily.

    A call that alone is longer makes a segment of its own: kernels can not be cut.
    """
    boundaries: list[int] = []
    length_ns = 0
    for position, duration_ns in enumerate(durations_ns):
        if position and length_ns + duration_ns > max_block_ns:
            boundaries.append(position)
            length_ns = 0
        length_ns += duration_ns
    return tuple(boundaries)
