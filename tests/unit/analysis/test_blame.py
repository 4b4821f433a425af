"""Where time went, on a log written by hand."""

from aegis_pipe.analysis.blame import RunLog


def segment(request, model, number, launch, start, end):
    return {
        "event": "segment_finished", "request_id": request, "model": model, "segment": number,
        "stream_id": "stream-0", "launch_ns": launch, "start_ns": start, "end_ns": end,
    }  # fmt: skip


def submitted(request, model, priority):
    return {
        "event": "request_submitted", "request_id": request, "model": model, "priority": priority,
    }  # fmt: skip


LOG = RunLog(
    [
        submitted("req-1", "big", 0),
        submitted("req-2", "small", 5),
        submitted("req-3", "other", 5),
        {
            "event": "schedule_decision", "kind": "start", "request_id": "req-2", "start_ns": 305,
            "sequence": 2, "blocked_by": ["req-1", "req-3"],
            "policy": "priority", "reason": "highest_priority", "stream_id": "stream-0",
            "queue_depth": 2, "candidates": [["req-2", 5], ["req-4", 0]],
        },
        segment("req-1", "big", 7, 0, 1, 150),
        segment("req-3", "other", 0, 160, 170, 300),
        segment("req-2", "small", 0, 310, 330, 400),
        {
            "event": "copy_finished", "request_id": "req-2", "start_ns": 320, "end_ns": 330,
        },
        {
            "event": "request_finished", "request_id": "req-2", "model": "small",
            "outcome": "completed", "reason": "", "arrival_ns": 100, "timestamp": 420,
            "deadline_ns": 400, "deadline_missed": True,
        },
    ]
)  # fmt: skip


def test_the_causes_add_up_to_the_whole_and_name_who_it_was():
    explained = LOG.explain("req-2")
    assert explained.by_cause() == {
        "queue": 140,
        "blocked": 50,
        "execute": 70,
        "copy": 10,
        "launch": 10,
        "host": 40,
    }
    assert sum(explained.by_cause().values()) == explained.total_ns == 320
    culprits = [(each.cause, each.request, each.segment) for each in explained.by_culprit()]
    assert culprits == [("queue", "req-3", 0), ("blocked", "req-1", 7)]


def test_nobody_waits_for_those_who_follow_within_the_segments_in_flight():
    """The end of `req-1` and the whole of `req-2`, whose segment was launched meanwhile."""

    def finished(request, arrival, end):
        return {
            "event": "request_finished", "request_id": request, "model": "m",
            "outcome": "completed", "reason": "", "arrival_ns": arrival, "timestamp": end,
            "deadline_ns": None, "deadline_missed": False,
        }  # fmt: skip

    def started(request, at):
        return {
            "event": "schedule_decision", "kind": "start", "request_id": request, "start_ns": at,
            "sequence": at, "blocked_by": [], "policy": "fifo", "reason": "first_arrival",
            "stream_id": "stream-0", "queue_depth": 1, "candidates": [],
        }  # fmt: skip

    log = RunLog(
        [
            *(submitted(request, "m", 0) for request in ("req-1", "req-2")),
            started("req-1", 10),
            started("req-2", 50),
            segment("req-1", "m", 0, 20, 30, 100),
            segment("req-2", "m", 0, 60, 105, 180),
            finished("req-1", 0, 120),
            finished("req-2", 40, 190),
        ]
    )
    first, second = (
        {cause: ns for cause, ns in log.explain(request).by_cause().items() if ns}
        for request in ("req-1", "req-2")
    )
    assert first == {"host": 40, "launch": 10, "execute": 70}
    # It stood behind the other one's segment from its arrival until that was done.
    assert second == {"queue": 60, "launch": 5, "execute": 75, "host": 10}


def test_the_decision_is_told_with_its_rule_and_its_candidates():
    explained = LOG.explain("req-2")
    assert (explained.rule, explained.queue_depth) == ("highest_priority", 2)
    assert [(each.request, each.score) for each in explained.candidates] == [
        ("req-2", 5),
        ("req-4", 0),
    ]
    assert explained.lost == ("req-3",)
    assert LOG.worst(3) == ["req-2"]


def decision(request, sequence, start, blocked_by=()):
    return {
        "event": "schedule_decision", "kind": "start", "request_id": request, "start_ns": start,
        "policy": "fifo", "reason": "only_candidate", "stream_id": "stream-0", "queue_depth": 1,
        "candidates": [], "sequence": sequence, "blocked_by": list(blocked_by),
    }  # fmt: skip


def finished(request, arrival, end):
    return {
        "event": "request_finished", "request_id": request, "model": "m", "outcome": "completed",
        "reason": "", "arrival_ns": arrival, "timestamp": end, "deadline_ns": None,
        "deadline_missed": False,
    }  # fmt: skip


def test_what_an_explanation_lacks_is_counted():
    lines = [
        decision("req-1", 0, 10),
        decision("req-2", 1, 20),
        decision("req-3", 2, 30, ["req-2"]),
        finished("req-1", 5, 15),
        finished("req-2", 5, 25),
        finished("req-3", 18, 35),
        # After a reload numbers begin anew.
        {"event": "manifest_reloaded", "start_ns": 32, "end_ns": 40},
        decision("req-4", 0, 50),
        decision("req-5", 1, 60),
        finished("req-4", 45, 70),
    ]
    log = RunLog(lines)
    assert [log.missing(request) for request in log.requests] == [0, 0, 0, 0]
    without_two = [line for line in lines if line.get("request_id") != "req-2"]
    # It was decided about while req-3 lived, and had the stream; req-1 had nothing to do with it.
    log = RunLog(without_two)
    assert (log.missing("req-1"), log.missing("req-4")) == (0, 0)
    assert log.missing("req-3") == 1
    lost = RunLog([line for line in without_two if line.get("sequence") != 2 or "start_ns" in line])
    assert lost.missing("req-3") == 1
    # The first that was decided, so that no gap shows it.
    headless = RunLog([decision("req-2", 1, 20), finished("req-1", 5, 25)])
    assert headless.missing("req-1") == 1
    cancelled = decision("req-1", 2, 21) | {"kind": "cancel"}
    ended = finished("req-1", 5, 25) | {"outcome": "cancelled"}
    assert RunLog([decision("req-2", 1, 20), cancelled, ended]).missing("req-1") == 0
    ran = segment("req-1", "m", 0, 6, 7, 8)
    assert RunLog([decision("req-2", 1, 20), cancelled, ended, ran]).missing("req-1") == 1
    undecided = RunLog([finished("req-9", 1, 2)])
    assert undecided.missing("req-9") == 1
