"""Watches a running system for what would make its admission worthless: overruns of the profile.

Whether a set of deadlines can be kept is reckoned once, at load, by `aegis_pipe.analysis`; what is
left for the run is to notice that an execution took longer than the proof assumed, to say so, and
to void the certificate.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from aegis_pipe.events import Event, EventHub, ProfileOverrun, SegmentFinished

_log = logging.getLogger(__name__)


class ProfileGuard:
    """A listener that holds every segment against its longest profiled time.

    `bounds_ns` has them by model. Emits one `ProfileOverrun` per overrun to the hub it listens
    to; the first of each model is also logged. For the orchestration thread.
    """

    def __init__(
        self, bounds_ns: Mapping[str, Sequence[int]], hub: EventHub, *, is_proven: bool
    ) -> None:
        self._bounds_ns = {model: tuple(bounds) for model, bounds in bounds_ns.items()}
        self._hub = hub
        self._is_proven = is_proven
        self.overruns: dict[str, int] = dict.fromkeys(self._bounds_ns, 0)

    @property
    def is_void(self) -> bool:
        """Whether there was a proof, and an overrun has taken it away."""
        return self._is_proven and any(self.overruns.values())

    def __call__(self, event: Event) -> None:
        """Take notice of segments; all else is let pass."""
        if type(event) is not SegmentFinished:
            return
        bounds_ns = self._bounds_ns.get(event.model)
        # A batch runs other segments than were profiled.
        if bounds_ns is None or event.segment >= len(bounds_ns):
            return
        bound_ns = bounds_ns[event.segment]
        if event.end_ns - event.start_ns > bound_ns:
            self._tell(event, bound_ns)

    def _tell(self, event: SegmentFinished, bound_ns: int) -> None:
        ratio = (event.end_ns - event.start_ns) / bound_ns
        if not self.overruns[event.model]:
            _log.warning(
                "model `%s`, segment %d took %.2f times as long as its profile says%s",
                event.model,
                event.segment,
                ratio,
                ": deadlines are no longer proven" if self._is_proven else "",
            )
        self.overruns[event.model] += 1
        self._hub.emit(
            ProfileOverrun(
                event.end_ns,
                event.request_id,
                event.model,
                event.segment,
                event.stream,
                round(ratio, 4),
                self._is_proven,
            )
        )
