"""Every event the core emits, with its fields; `docs/telemetry.md` is generated from this file.

Events are plain values. The core emits them and knows nothing of who listens; adapters in
`telemetry/` and `cli/` turn them into spans, log lines and tables. NamedTuples, because building
one costs 0.2 us where a frozen dataclass costs 0.5 us. Emit behind the guard:

    if hub.enabled:
        hub.emit(RequestSubmitted(...))

Instants (`*_ns`) are on the monotonic axis of the runtime's `Clock`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from aegis_pipe.clock import Clock

Scalar = str | int | float | bool


class RuntimeStarted(NamedTuple):
    """The runtime is ready to take requests."""

    at_ns: int
    name: str
    """The manifest's name."""
    device: str
    device_reason: str
    """Why this device: asked for, or chosen by `auto` because ..."""
    policy: str
    streams: int


class RuntimeStopped(NamedTuple):
    """Everything was drained; no event follows."""

    at_ns: int
    name: str
    drained: bool
    """False if requests were still open when the time for draining was over."""


class ManifestReloaded(NamedTuple):
    """A reload ended: another manifest runs, or the one before goes on."""

    start_ns: int
    end_ns: int
    outcome: str
    """`applied`, `unchanged`, `refused`, `restored` (the new one could not be started, and the one
    before was started again) or `failed` (nothing runs any more)."""
    digest_before: str
    """SHA-256 of the manifest that ran, with its defaults left out."""
    digest_after: str
    """Of the new one; empty if it could not be read."""
    models_added: tuple[str, ...]
    models_removed: tuple[str, ...]
    models_reloaded: tuple[str, ...]
    """In both manifests, and loaded anew."""
    models_kept: tuple[str, ...]
    """In both manifests, and left on the device as they were."""
    requests_held: int
    """Requests that came during the swap and waited for its end."""
    error: str
    """Why it was not applied; empty if it was."""


class PhaseFinished(NamedTuple):
    """A stretch of start-up work ended: one span of a `model.load` (or start-up) trace."""

    phase_id: int
    parent_id: int
    """`phase_id` of the enclosing phase; 0 for a root."""
    name: str
    """`model.load`, `onnx.load`, `passes`, `pass.<name>`, `memory.plan`, `pool.reserve`, ..."""
    model: str
    """Empty for phases of the whole runtime."""
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Scalar]
    error: str
    """Empty if it went well."""


class ModelLoaded(NamedTuple):
    """A model is ready on every stream; carries what later events refer to by number."""

    at_ns: int
    model: str
    phase_id: int
    """Its `model.load` phase, for links."""
    kernels: tuple[tuple[tuple[str, str, str], ...], ...]
    """Per segment, per call: (operator, node, kernel)."""
    weights_bytes: int
    arena_bytes: int


class MemoryAllocated(NamedTuple):
    """A planned tensor got its place in a pool, at start-up."""

    at_ns: int
    pool: str
    model: str
    tensor: str
    offset_bytes: int
    size_bytes: int


class MemoryReleased(NamedTuple):
    """A pool's tensor gave its place back, at the end."""

    at_ns: int
    pool: str
    model: str
    tensor: str
    offset_bytes: int
    size_bytes: int


class RequestSubmitted(NamedTuple):
    """A request entered the queue."""

    at_ns: int
    request_id: int
    model: str
    priority: int
    deadline_ns: int
    """Instant by which the result is due; 0 for none."""
    queue_depth: int
    """Requests waiting, this one included."""
    parent: str
    """W3C `traceparent` of the caller, or empty."""


class DecisionMade(NamedTuple):
    """The scheduler decided about one request; the reason is complete."""

    start_ns: int
    end_ns: int
    sequence: int
    """Position in the run's decision log."""
    kind: str
    """`start`, `continue`, `expire`, `reject` or `cancel`."""
    request_id: int
    model: str
    policy: str
    reason: str
    """Code from `scheduling.decision.Reason`."""
    stream: int
    """-1 where no stream is involved."""
    queue_depth: int
    """Requests waiting before the decision."""
    candidates: tuple[tuple[int, float], ...]
    """The best few waiting requests as (request_id, score), best first; of a `start` the winner
    leads."""
    blocked_by: tuple[int, ...]
    """Requests that held the streams while this one waited."""


class SegmentFinished(NamedTuple):
    """A segment of a request ran on a stream."""

    request_id: int
    model: str
    segment: int
    stream: int
    launch_ns: int
    """When the host enqueued it."""
    start_ns: int
    end_ns: int
    kernel_times: bytes
    """int64[calls, 2] start and end per call, or empty if not stamped."""


class CopyFinished(NamedTuple):
    """Inputs reached the device, or outputs the host."""

    request_id: int
    model: str
    stream: int
    direction: str
    """`in` or `out`."""
    size_bytes: int
    start_ns: int
    end_ns: int


class EventSynchronised(NamedTuple):
    """A graph edge crossed streams: recorded on one, waited for on another."""

    at_ns: int
    request_id: int
    model: str
    record_stream: int
    wait_stream: int
    tensor: str


class ProfileOverrun(NamedTuple):
    """A segment took longer than the profile says that it ever does."""

    at_ns: int
    request_id: int
    model: str
    segment: int
    stream: int
    ratio: float
    """Time it took, by the longest profiled one."""
    voids_certificate: bool
    """Whether deadlines were proven with that time, and now are not."""


class RequestFinished(NamedTuple):
    """A request reached its final state; exactly one per submitted request."""

    at_ns: int
    request_id: int
    model: str
    outcome: str
    """`completed`, `failed`, `expired`, `rejected` or `cancelled`."""
    reason: str
    """Code; empty for a plain completion."""
    error: str
    arrival_ns: int
    start_ns: int
    """When it left the queue; 0 if it never did."""
    deadline_ns: int
    deadline_missed: bool


class StageFinished(NamedTuple):
    """A pipeline's item passed a stage, source or sink."""

    pipeline: str
    item: int
    stage: str
    kind: str
    """`source`, `transform`, `model` or `sink`."""
    start_ns: int
    end_ns: int
    request_id: int
    """The request of a model stage; 0 otherwise."""
    error: str


class ItemFinished(NamedTuple):
    """A pipeline's item left it."""

    pipeline: str
    item: int
    outcome: str
    """`completed`, `failed` or `dropped`."""
    reason: str
    start_ns: int
    end_ns: int


class ListenerFailed(NamedTuple):
    """A listener raised and was removed; the run goes on."""

    at_ns: int
    listener: str
    error: str


Event = (
    RuntimeStarted
    | RuntimeStopped
    | ManifestReloaded
    | PhaseFinished
    | ModelLoaded
    | MemoryAllocated
    | MemoryReleased
    | RequestSubmitted
    | DecisionMade
    | SegmentFinished
    | ProfileOverrun
    | CopyFinished
    | EventSynchronised
    | RequestFinished
    | StageFinished
    | ItemFinished
    | ListenerFailed
)
Listener = Callable[[Event], None]


def instant_ns(event: Event) -> int:
    """Return when an event happened: at its instant, or at the end of its stretch."""
    # Not by `hasattr`: every event has the one or the other, most the first or the last field.
    try:
        return event.at_ns  # type: ignore[union-attr]
    except AttributeError:
        return event.end_ns  # type: ignore[union-attr]


_log = logging.getLogger(__name__)


class EventHub:
    """Hands each event to every listener, on the emitting thread.

    Listeners must be quick and must not raise; one that does is logged and removed, and the run
    goes on. `counters` are listeners that want to
    know of `RequestSubmitted` and `RequestFinished` and need nothing else.

    `enabled` says whether anybody listens at all; `detailed`, whether anybody wants more than
    counters do: without, nobody has to find out what happened in between.
    """

    def __init__(self, *listeners: Listener, counters: tuple[Listener, ...] = ()) -> None:
        self._listeners = (*counters, *listeners)
        self._counters = counters
        self._look()

    def add(self, listener: Listener) -> None:
        """Hand later events to this listener too."""
        self._listeners = (*self._listeners, listener)
        self._look()

    def remove(self, listener: Listener) -> None:
        """Hand no later events to this listener."""
        # Equality, not identity: a bound method is a new object at each access.
        self._listeners = tuple(other for other in self._listeners if other != listener)
        self._look()

    def _look(self) -> None:
        self.enabled = bool(self._listeners)
        self.detailed = any(listener not in self._counters for listener in self._listeners)

    def emit(self, event: Event) -> None:
        """Hand an event to all listeners."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                _log.exception("listener %r raised and was removed", listener)
                self.remove(listener)


class Phase:
    """An open stretch of start-up work; `attributes` may be added to until it ends."""

    def __init__(self, phase_id: int, parent_id: int, name: str, model: str, start_ns: int) -> None:
        self.phase_id = phase_id
        self.parent_id = parent_id
        self.name = name
        self.model = model
        self.start_ns = start_ns
        self.attributes: dict[str, Scalar] = {}
        self.is_open = True


class PhaseRecorder:
    """Times the stretches of start-up work and emits one `PhaseFinished` for each.

    Phases nest by their `with` blocks; `begin` and `end` are for one that is left and entered
    again (`inside`). One thread only; not for anything done per request.
    """

    def __init__(self, hub: EventHub, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock
        self._open: list[Phase] = []
        self._last_id = 0

    def begin(self, name: str, *, model: str = "") -> Phase:
        """Open a phase under the innermost one, without going into it."""
        self._last_id += 1
        parent_id = self._open[-1].phase_id if self._open else 0
        return Phase(self._last_id, parent_id, name, model, self._clock.now_ns())

    def end(self, phase: Phase, error: str = "") -> None:
        """Close a phase and emit it."""
        phase.is_open = False
        if self._hub.enabled:
            self._hub.emit(
                PhaseFinished(
                    phase.phase_id,
                    phase.parent_id,
                    phase.name,
                    phase.model,
                    phase.start_ns,
                    self._clock.now_ns(),
                    phase.attributes,
                    error,
                )
            )

    @contextmanager
    def inside(self, phase: Phase) -> Iterator[None]:
        """Make `phase` the parent of what is opened in the block; an error ends it."""
        self._open.append(phase)
        try:
            yield
        except BaseException as failure:
            self.end(phase, str(failure) or type(failure).__name__)
            raise
        finally:
            self._open.pop()

    @contextmanager
    def phase(self, name: str, *, model: str = "") -> Iterator[Phase]:
        """Open a phase for the length of the block."""
        phase = self.begin(name, model=model)
        with self.inside(phase):
            yield phase
        self.end(phase)
