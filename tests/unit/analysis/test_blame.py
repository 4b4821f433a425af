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


def test_the_decision_is_told_with_its_rule_and_its_candidates():
    explained = LOG.explain("req-2")
    assert (explained.rule, explained.queue_depth) == ("highest_priority", 2)
    assert [(each.request, each.score) for each in explained.candidates] == [
        ("req-2", 5),
        ("req-4", 0),
    ]
    assert explained.lost == ("req-3",)
    assert LOG.worst(3) == ["req-2"]
