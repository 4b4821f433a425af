"""Runs of a recording scheduler, decided again."""

from __future__ import annotations

import errno
import random

import pytest

from aegis_pipe.analysis.replay import replay, what_if
from aegis_pipe.analysis.simulation import Load, Loads, StageLoad, poisson, run
from aegis_pipe.errors import PermanentError
from aegis_pipe.output_file import OutputFile
from aegis_pipe.scheduling.policies import make_policy
from aegis_pipe.scheduling.recording import RecordingScheduler, RunWriter, Submitted, read_run
from aegis_pipe.scheduling.scheduler import Scheduler
from aegis_pipe.scheduling.stream_pool import StreamPool

MODELS = ["a", "b"]


def scheduler(kind=Scheduler, policy="priority", in_flight=1):
    return kind(
        make_policy(policy),
        StreamPool(2),
        queue_capacity=4,
        preemption=True,
        memory_of={"a": 1, "b": 0},
        in_flight=in_flight,
    )


def record(path, seed, in_flight=1, took_ns=None):
    """Simulate an overload: expiries and refusals are among what happens."""
    writer = RunWriter(path, {"models": MODELS})
    recording = scheduler(RecordingScheduler, in_flight=in_flight)
    recording.record_to(writer, MODELS)
    loads = [
        Load("a", (StageLoad("a", "a", 1, 5, deadline_ns=3_000_000),), poisson(900, seed)),
        Load("b", (StageLoad("b", "b", 3, 0, deadline_ns=9_000_000),), poisson(500, seed + 1)),
    ]
    dice = random.Random(seed)
    decisions = []

    def times(request, segment, beside):
        duration_ns = dice.randrange(100_000, 2_500_000)
        if took_ns is not None:
            took_ns[request.request_id, segment] = duration_ns
        return duration_ns

    run(
        recording,
        Loads(loads, seed),
        times,
        until_ns=500_000_000,
        on_decisions=decisions.extend,
    )
    return writer.close(), decisions


@pytest.mark.parametrize("seed", range(3))
def test_the_same_facts_give_the_same_decisions_to_the_byte(tmp_path, seed):
    journal, decisions = record(tmp_path / "x.run", seed)
    kinds = {decision.kind for decision in decisions}
    assert kinds >= {"start", "continue", "expire"}
    again = []
    recorded = read_run(tmp_path / "x.run")
    result = replay(recorded, scheduler(), again.append)
    assert result.journal == recorded.journal == journal
    assert any(decision.kind == "reject" for decision in again)
    assert [each for each in again if each.kind != "reject"] == decisions


@pytest.mark.parametrize("in_flight", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(3, 6))
def test_segments_take_what_they_took_whatever_was_in_flight_before_them(tmp_path, in_flight, seed):
    took_ns = {}
    journal, _ = record(tmp_path / "x.run", seed, in_flight, took_ns)
    result = replay(read_run(tmp_path / "x.run"), scheduler(in_flight=in_flight), lambda _: None)
    assert result.journal == journal
    assert result.durations_ns
    assert result.durations_ns == {key: took_ns[key] for key in result.durations_ns}


def test_another_policy_meets_the_same_requests(tmp_path):
    record(tmp_path / "x.run", 5)
    recorded = read_run(tmp_path / "x.run")
    result = replay(recorded, scheduler(), lambda decision: None)
    same = what_if(recorded, result.durations_ns, scheduler())
    other = what_if(recorded, result.durations_ns, scheduler(policy="fifo"))
    assert [each.submitted for each in same] == [each.submitted for each in other]
    # The urgent model loses by it.
    assert other[0].misses + other[0].dropped > same[0].misses + same[0].dropped


def test_a_recording_takes_some_twenty_bytes_a_request(tmp_path):
    record(tmp_path / "x.run", 1)
    recorded = read_run(tmp_path / "x.run")
    requests = sum(type(fact).__name__ in ("Submitted", "Rejected") for fact in recorded.facts)
    assert (tmp_path / "x.run").stat().st_size < 45 * requests


def test_what_is_no_recording_is_told(tmp_path):
    for content in (b"", b"{}\n", b'{"format": 99}\n', b'{"format": 1}\n\xff'):
        (tmp_path / "x.run").write_bytes(content)
        with pytest.raises(PermanentError, match="no recording"):
            read_run(tmp_path / "x.run")
    with pytest.raises(PermanentError, match="can not be read"):
        read_run(tmp_path / "nothing.run")


def test_a_full_disk_ends_the_recording_and_not_the_run(tmp_path, monkeypatch, caplog):
    write = OutputFile.write
    records = []

    def full(self, record):
        records.append(bytes(record))
        if len(records) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, record)

    monkeypatch.setattr(OutputFile, "write", full)
    writer = RunWriter(tmp_path / "x.run", {"models": MODELS})
    for number in range(3):
        writer.take(Submitted(number, number, 0, 1, 0, -1, number))
        writer._drain()
    assert len(writer.close()) == 64
    assert writer.problem == "No space left on device"
    assert "the recording ends here" in caplog.text
    # Nothing after the gap, and what is there can be read.
    recorded = read_run(tmp_path / "x.run")
    assert recorded.facts == ()
    assert recorded.journal == ""


def test_a_recording_that_can_not_be_written_is_told_at_once(tmp_path):
    (tmp_path / "x.run").mkdir()
    with pytest.raises(PermanentError, match="can not be written: Is a directory") as caught:
        RunWriter(tmp_path / "x.run", {"models": MODELS})
    assert caught.value.hint
