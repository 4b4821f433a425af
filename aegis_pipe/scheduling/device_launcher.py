"""Carries out the scheduler's decisions on real streams, and tells what has finished.

One slot per stream. Several segments can be in flight there, of one request, or the last ones of
one and the first ones of the next: the stream's order is what makes one arena per stream sound.
Used by the orchestration thread only, except for what brings a request's inputs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from aegis_pipe.clock import Clock
from aegis_pipe.device.protocols import DeviceStream, StagedInputs, StagingAhead
from aegis_pipe.errors import AegisError, PermanentError
from aegis_pipe.events import CopyFinished, EventHub, EventSynchronised, SegmentFinished
from aegis_pipe.execution.executor import Executor
from aegis_pipe.execution.program import BoundModel, BoundTensor, Work
from aegis_pipe.scheduling.batching import variant_name
from aegis_pipe.scheduling.loop import SegmentCompletion
from aegis_pipe.scheduling.request import ExecutionRequest, RequestState

STAGED_LATE_MAX_BYTES = 4 << 20
"""Larger inputs are not staged by the thread that launches: others would wait for it too long."""


class InferenceFuture(Future[dict[str, np.ndarray]]):
    """A request's result to come; `cancel` also withdraws a request that runs already."""

    def __init__(self) -> None:
        super().__init__()
        self.request_id = 0
        self.caller_traceparent = ""
        """W3C `traceparent` that the request was submitted with, or empty."""
        self._withdraw: Callable[[int], bool] | None = None
        self._completes_here: Callable[[], bool] | None = None

    def attach(
        self,
        request_id: int,
        withdraw: Callable[[int], bool],
        completes_here: Callable[[], bool],
    ) -> None:
        """Connect with the request; called once, at submission.

        `completes_here` tells whether the calling thread is the one that completes requests.
        """
        self.request_id = request_id
        self._withdraw = withdraw
        self._completes_here = completes_here

    def result(self, timeout: float | None = None) -> dict[str, np.ndarray]:
        """Wait for the outputs; as with any future, and see `exception`."""
        self._refuse_to_wait_for_itself()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end. A PermanentError refuses a wait in a callback, which would not end."""
        self._refuse_to_wait_for_itself()
        return super().exception(timeout)

    def _refuse_to_wait_for_itself(self) -> None:
        if self._completes_here is not None and self._completes_here() and not self.done():
            raise PermanentError(
                "callbacks run on the thread that completes requests, so this wait would not end",
                context=f"request {self.request_id}",
                hint="add a callback to this future too, or wait on a thread of your own",
            )

    def cancel(self) -> bool:
        """Withdraw the request; it ends at its next segment. False if it is over already."""
        if self.done() or self._withdraw is None:
            return False
        return self._withdraw(self.request_id)


@dataclass(slots=True, eq=False)
class RequestPayload:
    """What a request brings along for its launch."""

    inputs: Sequence[np.ndarray]
    future: InferenceFuture
    outputs: Sequence[np.ndarray] = ()
    row: int = 0
    """Its place in the batch that it runs in."""
    bound: BoundModel | None = None
    """What it runs, from its launch on."""
    staged: StagedInputs | None = None
    """Its inputs, if they lie where its launch will find them."""


@dataclass(slots=True, eq=False)
class _Running:
    request: ExecutionRequest
    bound: BoundModel
    segment: int
    last: Work
    launch_ns: int
    stamped: bool
    timed: bool
    """Whether its events were recorded; without listeners nobody asks."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamSlot:
    """A stream with its lanes and the models bound to its arena.

    Variants for batches are among the models, by `variant_name`; their inputs and outputs are the
    rows: of the first tensor all of them, then of the next. `discards` has, for each variant, one
    array per output that rows nobody wants are copied to. `twins` has models once more, whose
    requests follow each other so closely that both are at the same segment.
    """

    lanes: Sequence[DeviceStream]
    models: Mapping[str, BoundModel] = field(default_factory=dict)
    discards: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    twins: Mapping[str, BoundModel] = field(default_factory=dict)


class DeviceLauncher:
    """Launches segments on stream slots and polls their completion events."""

    def __init__(
        self,
        slots: Sequence[StreamSlot],
        clock: Clock,
        hub: EventHub,
        *,
        notifies: bool,
        is_stamped: Callable[[int], bool],
        half_written: set[str] | None = None,
        ahead: StagingAhead | None = None,
    ) -> None:
        self._slots = slots
        self._clock = clock
        self._hub = hub
        self._is_stamped = is_stamped
        self._in_flight: tuple[deque[_Running], ...] = tuple(deque() for _ in slots)
        # Models with a request that has begun to write over their state.
        self._half_written = set() if half_written is None else half_written
        self.notifies = notifies
        self._ahead = ahead
        self.stages_ahead = ahead is not None
        self.staged_ahead = 0
        """Requests that were launched without copying their inputs, which were staged by then."""

    # For whoever hands a request in; a request is one thread's until it was handed in.

    def stage_inputs(self, payload: RequestPayload) -> None:
        """Copy the inputs, if that is worth it, to where their launch will find them."""
        if self._ahead is not None and payload.staged is None:
            payload.staged = self._ahead.stage(payload.inputs)

    def give_back_inputs(self, payload: RequestPayload) -> None:
        """Have back what `stage_inputs` took, for a request that will not be launched."""
        if self._ahead is not None and payload.staged is not None:
            self._ahead.give_back(payload.staged)

    # For the orchestration thread.

    def stage(self, request: ExecutionRequest) -> None:
        """Stage the inputs of a request for which there was no room when it was handed in."""
        payload = request.payload
        if payload.staged is None:
            size_bytes = sum(array.nbytes for array in payload.inputs)
            if size_bytes <= STAGED_LATE_MAX_BYTES:
                self.stage_inputs(payload)

    def launch(self, request: ExecutionRequest, segment: int, stream: int) -> None:
        """Enqueue one segment of a request on a stream.

        Raises PermanentError for a model whose state an earlier request left half-written.
        """
        slot, payload = self._slots[stream], request.payload
        if segment == 0:
            self._prepare(request, stream)
        bound = payload.bound
        if bound.first_update is not None:
            self._begin_update(request.model, segment, bound.first_update)
        inputs, outputs = payload.inputs, payload.outputs
        if request.batch_size > 1:
            inputs, outputs = _rows(request, slot.discards[bound.name])
        timed = self._hub.detailed
        launch_ns = self._clock.now_ns() if timed else 0
        stamped = timed and self._is_stamped(request.request_id)
        last = Executor.last_work(bound, segment)
        in_flight = self._in_flight[stream]
        assert not any(each.last is last for each in in_flight), f"{bound.name} has no twin"
        if in_flight and in_flight[-1].request is not request:
            for lane in slot.lanes:
                lane.begin_request()
        staged: Sequence[StagedInputs] = ()
        if segment == 0 and self._ahead is not None:
            staged = _staged(request)
            self._ahead.serve(staged)
        # Noted before launching, so that a launch that fails half-way is still waited for.
        in_flight.append(_Running(request, bound, segment, last, launch_ns, stamped, timed))
        try:
            Executor.launch_segment(
                bound, segment, slot.lanes, inputs, outputs, stamped=stamped, timed=timed
            )
            if not timed:
                slot.lanes[last.lane].record(last.done)
        except AegisError:
            in_flight.pop()
            raise
        finally:
            if staged and self._ahead is not None:
                self._ahead.serve(())
        self.staged_ahead += len(staged)

    def _begin_update(self, model: str, segment: int, first_update: int) -> None:
        # Requests of such a model run one after the other: what is open when one starts stays so.
        if segment == 0 and model in self._half_written:
            raise PermanentError(
                "its state is half-written: a request before failed, or was given up, on the way",
                context=f"model `{model}`",
                hint="call `reset_state` and begin anew",
            )
        if segment == first_update:
            self._half_written.add(model)

    def state_was_reset(self, model: str) -> None:
        """Take requests of the model again; none is waiting or running."""
        self._half_written.discard(model)

    def _prepare(self, request: ExecutionRequest, stream: int) -> None:
        slot, name = self._slots[stream], variant_name(request.model, request.batch_size)
        bound = slot.models[name]
        twin = slot.twins.get(name)
        if twin is not None and any(each.bound is bound for each in self._in_flight[stream]):
            bound = twin
        outputs = slot.models[request.model].outputs
        for row, member in enumerate((request, *request.companions)):
            member.payload.row, member.payload.bound = row, bound
            member.payload.outputs = [
                np.empty(tensor.spec.shape, tensor.spec.dtype) for tensor in outputs
            ]

    def poll(self) -> Iterable[SegmentCompletion]:
        """Return what has finished since the last poll, by stream."""
        finished: list[SegmentCompletion] = []
        for stream, in_flight in enumerate(self._in_flight):
            while in_flight and in_flight[0].last.done.is_done():
                finished.append(self._complete(stream, in_flight.popleft()))
        return finished

    def _complete(self, stream: int, running: _Running) -> SegmentCompletion:
        error: AegisError | None = None
        last = running.last
        for number, lane in enumerate(self._slots[stream].lanes):
            try:
                lane.check(last.done if number == last.lane else None)
            except AegisError as failure:
                error = error or failure
        if error is None and running.segment == running.bound.segment_count - 1:
            self._half_written.discard(running.request.model)
        if running.timed:
            for member in (running.request, *running.request.companions):
                self._emit(stream, member, running, error)
        return SegmentCompletion(running.request.request_id, stream, error)

    def _emit(
        self, stream: int, request: ExecutionRequest, running: _Running, error: AegisError | None
    ) -> None:
        bound, segment = running.bound, running.segment
        if segment == 0:
            self._emit_copy(stream, request, bound.work[0], "in", _bytes(bound.inputs))
        piece = bound.work[segment + 1]
        times = b""
        if running.stamped and error is None and piece.graph is not None:
            times = piece.graph.kernel_times()
        self._hub.emit(
            SegmentFinished(
                request.request_id,
                bound.name,
                segment,
                stream,
                running.launch_ns,
                piece.begin.completed_ns(),
                piece.done.completed_ns(),
                times,
            )
        )
        if segment == bound.segment_count - 1:
            self._emit_copy(stream, request, bound.work[-1], "out", _bytes(bound.outputs))
            self._emit_synchronisations(stream, request, bound)

    def _emit_copy(
        self, stream: int, request: ExecutionRequest, piece: Work, direction: str, size: int
    ) -> None:
        self._hub.emit(
            CopyFinished(
                request.request_id,
                request.model,
                stream,
                direction,
                size,
                piece.begin.completed_ns(),
                piece.done.completed_ns(),
            )
        )

    def _emit_synchronisations(
        self, stream: int, request: ExecutionRequest, bound: BoundModel
    ) -> None:
        for wait in bound.synchronisations:
            self._hub.emit(
                EventSynchronised(
                    bound.work[wait.record_after].done.completed_ns(),
                    request.request_id,
                    request.model,
                    wait.record_lane,
                    wait.wait_lane,
                    wait.tensor,
                )
            )

    def finish(
        self, request: ExecutionRequest, state: RequestState, error: Exception | None
    ) -> None:
        """Give the caller its result or its error."""
        payload: RequestPayload = request.payload
        self.give_back_inputs(payload)
        if error is not None:
            payload.future.set_exception(error)
            return
        assert state is RequestState.COMPLETED
        bound = self._slots[request.stream or 0].models[request.model]
        payload.future.set_result(bound.named_results(payload.outputs))


def _staged(leader: ExecutionRequest) -> list[StagedInputs]:
    """Return what is staged of a request, or of a batch."""
    payloads = (member.payload for member in (leader, *leader.companions))
    return [payload.staged for payload in payloads if payload.staged is not None]


def _rows(
    leader: ExecutionRequest, discards: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Line up a batch's inputs and outputs as its variant's rows.

    Rows beyond the batch repeat the leader's inputs, so that what is computed there depends on
    nothing that ran before; their outputs, and those of requests that have left, are thrown away.
    """
    size = leader.batch_size
    inputs = [leader.payload.inputs] * size
    outputs = [discards] * size
    for member in (leader, *leader.companions):
        inputs[member.payload.row] = member.payload.inputs
        outputs[member.payload.row] = member.payload.outputs
    return (
        [array for rows in zip(*inputs, strict=True) for array in rows],
        [array for rows in zip(*outputs, strict=True) for array in rows],
    )


def _bytes(tensors: Sequence[BoundTensor]) -> int:
    return sum(tensor.spec.size_bytes for tensor in tensors)
