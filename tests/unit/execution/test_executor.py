"""What launching a program enqueues: which events, in which order."""

from __future__ import annotations

import pytest

from aegis_pipe.execution.executor import Executor
from aegis_pipe.execution.program import BoundModel, build_program


class Device:
    """Makes events, streams and graphs that note what is done with them."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, object]] = []

    def create_event(self, *, is_announced: bool = True) -> Noted:
        return Noted(self)


class Noted:
    """An event, a stream or a graph."""

    def __init__(self, device: Device) -> None:
        self.notes = device.notes

    def record(self, event: object) -> None:
        self.notes.append(("record", event))

    def wait(self, event: object) -> None:
        self.notes.append(("wait", event))

    def launch(self, stream: object, *, stamped: bool) -> None:
        self.notes.append(("launch", self))


def _program(device: Device, segments: int, copy_lane: int = 0) -> BoundModel:
    graphs = [Noted(device) for _ in range(segments)]
    return build_program(device, "m", (), (), graphs, copy_lane=copy_lane)  # type: ignore[arg-type]


def _launched(device: Device, bound: BoundModel, segment: int, *, timed: bool) -> list[str]:
    lanes = [Noted(device), Noted(device)]
    device.notes.clear()
    Executor.launch_segment(bound, segment, lanes, (), (), stamped=False, timed=timed)  # type: ignore[arg-type]
    return [what for what, _ in device.notes]


@pytest.mark.parametrize("segments", [1, 2, 3])
def test_what_is_launched_together_shares_an_event_between_its_pieces(segments: int) -> None:
    device = Device()
    bound = _program(device, segments)
    notes = []
    for segment in range(segments):
        notes.append(_launched(device, bound, segment, timed=True))
        recorded = [event for what, event in device.notes if what == "record"]
        assert len(recorded) == len(set(map(id, recorded)))
        done = Executor.last_work(bound, segment).done
        assert recorded[-1] is done
    first, *_ = notes
    assert first[:4] == ["record", "record", "launch", "record"]
    assert [len(each) for each in notes] == [
        3 + (segment == 0) + (segment == segments - 1) for segment in range(segments)
    ]
    # Each piece has its times all the same.
    for before, piece in zip(bound.work, bound.work[1:], strict=False):
        shares = piece.begin is before.done
        assert shares == (piece is bound.work[1] or piece is bound.work[-1])


def test_pieces_on_two_lanes_begin_when_their_own_lane_does() -> None:
    device = Device()
    bound = _program(device, 1, copy_lane=1)
    begins = {id(piece.begin) for piece in bound.work}
    assert begins.isdisjoint({id(piece.done) for piece in bound.work})
    notes = _launched(device, bound, 0, timed=True)
    assert notes.count("record") == 6
    assert notes.count("wait") == 2


def test_nobody_asks_for_times_and_nothing_is_recorded() -> None:
    device = Device()
    assert _launched(device, _program(device, 1), 0, timed=False) == ["launch"]
    # But for what the other lane waits for.
    notes = _launched(device, _program(device, 1, copy_lane=1), 0, timed=False)
    assert notes == ["record", "wait", "launch", "record", "wait"]
