from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import pytest

from aegis_pipe.events import Event, RequestFinished, SegmentFinished
from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.assembler import LOST_NS, OVERDUE_NS, SETTLE_NS, TraceAssembler
from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.ids import Identifiers
from aegis_pipe.telemetry.spans import Span, Trace, expand
from aegis_pipe.testing.event_sequences import (
    START_NS,
    expired_events,
    item_events,
    load_events,
    request_events,
    run_events,
)

RUN_ID = b"run for the tests"
ALL = TelemetryConfig(ratio=1.0)
NONE = TelemetryConfig(ratio=0.0)


def make_assembler(config: TelemetryConfig = ALL) -> TraceAssembler:
    return TraceAssembler(config, Identifiers(RUN_ID), lambda instant_ns: instant_ns + 17)


def flat(traces: Iterable[Trace]) -> list[Span]:
    return [span for trace in traces for span in expand(trace)]


def assemble(events: list[Event], config: TelemetryConfig = ALL) -> list[Span]:
    assembler = make_assembler(config)
    for event in events:
        assembler.add(event)
    spans = flat(assembler.flush())
    assert assembler.abandoned == 0
    return spans


def outline(spans: list[Span]) -> list[str]:
    """The tree as indented names, in the order of export."""
    depths: dict[tuple[int, int], int] = {}
    lines = []
    for span in spans:
        depth = depths.get((span.trace_id, span.parent_id), -1) + 1
        depths[span.trace_id, span.span_id] = depth
        lines.append("  " * depth + span.name)
    return lines


def infers(spans: list[Span]) -> dict[object, Span]:
    found = (span for span in spans if span.name.startswith("infer "))
    return {span.attributes[names.REQUEST_ID]: span for span in found}


def test_request_has_the_documented_shape() -> None:
    events = load_events(kernels=3) + request_events(1, START_NS + 200_000, kernels=3)
    assert outline(assemble(events))[7:] == [
        "infer detector",
        "  queue.wait",
        "  schedule.decide",
        "  execute",
        "    stream 0",
        "      copy.in",
        "      Conv",
        "      Relu",
        "      MatMul",
        "      Conv",
        "      Relu",
        "      MatMul",
        "      copy.out",
        "    schedule.decide",
    ]


def test_only_the_decision_to_start_has_a_winner() -> None:
    spans = assemble(load_events() + request_events(1, START_NS + 200_000, kernels=3))
    start, continuation = (span for span in spans if span.name == names.SCHEDULE_DECIDE)
    assert start.attributes[names.WINNER] == 1
    assert continuation.attributes[names.CANDIDATE_IDS]
    assert names.WINNER not in continuation.attributes


def test_load_has_the_documented_shape() -> None:
    spans = assemble(load_events())
    assert (
        outline(spans)
        == [
            "model.load detector",
            "  onnx.load",
            "  passes",
            "    pass.fold_constants",
            "  memory.plan",
            "  pool.reserve",
            "  graph.capture",
        ][: len(spans)]
    )
    assert len(spans) == 7
    assert spans[0].attributes[names.WEIGHTS_BYTES] == 4_096
    reserve = spans[5]
    assert len(reserve.events) == 128
    assert reserve.attributes[names.EVENTS_OMITTED] == 72
    assert reserve.events[1].attributes[names.OFFSET_BYTES] == 64


def test_item_is_one_trace_with_the_request_below_its_stage() -> None:
    spans = assemble(load_events() + item_events(7, 3, START_NS + 200_000))
    item = [span for span in spans if span.trace_id == spans[-1].trace_id]
    lines = outline(item)
    assert lines[:6] == [
        "pipeline camera",
        "  source",
        "  transform prepare",
        "  model detect",
        "    infer detector",
        "      queue.wait",
    ]
    assert lines[-1] == "  sink jsonl"


def test_every_span_lies_in_its_parent_and_ids_are_unique() -> None:
    spans = assemble(run_events())
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    assert len(by_id) == len(spans)
    for span in spans:
        assert span.end_ns >= span.start_ns
        if span.parent_id:
            parent = by_id[span.trace_id, span.parent_id]
            assert parent.start_ns <= span.start_ns
            assert span.end_ns <= parent.end_ns


def test_neighbours_are_apart_by_whole_microseconds() -> None:
    spans = assemble(run_events())
    siblings: dict[tuple[int, int], list[Span]] = {}
    for span in spans:
        siblings.setdefault((span.trace_id, span.parent_id), []).append(span)
    pairs = [pair for group in siblings.values() for pair in itertools.pairwise(group)]
    apart = 0
    for one, other in pairs:
        shown_end_us = one.start_ns // 1000 + (one.end_ns - one.start_ns) // 1000
        if one.start_ns + int(str(one.attributes[names.DURATION_NS])) <= other.start_ns:
            assert shown_end_us < other.start_ns // 1000
            apart += 1
    assert apart > 100


def test_links_lead_to_the_load_and_to_the_blocker() -> None:
    spans = assemble(run_events())
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    found = infers(spans)
    for request_id in range(2, 21):
        load, blocker = found[request_id].links
        assert by_id[load.target].name == "model.load detector"
        assert by_id[blocker.target] is found[request_id - 1]
    assert found[20].attributes[names.BLOCKED_BY] == (19,)


def test_the_parts_of_a_request_add_up() -> None:
    spans = assemble(request_events(1, START_NS))
    parts = [span for span in spans if span.parent_id == spans[0].span_id]
    total = sum(int(str(span.attributes[names.DURATION_NS])) for span in parts)
    assert total == spans[0].attributes[names.DURATION_NS]


def test_errors_are_marked_and_described() -> None:
    found = infers(assemble(run_events()))
    assert found[21].error == "failed: detector: kernel `Conv` refused its data"
    assert found[22].error == "expired: deadline_passed"
    assert found[23].error.startswith("deadline missed by ")
    assert [request_id for request_id, span in found.items() if span.error] == [21, 22, 23]


def test_only_special_requests_are_kept_at_ratio_zero() -> None:
    assert set(infers(assemble(run_events(), NONE))) == {21, 22, 23}
    only_errors = TelemetryConfig(ratio=0.0, always=("error",))
    assert set(infers(assemble(run_events(), only_errors))) == {21}
    slow = TelemetryConfig(ratio=0.0, always=(), slow_ns=200_000)
    assert set(infers(assemble(run_events(), slow))) == set(range(1, 26)) - {21, 22}


def test_ratio_keeps_that_share_and_always_the_same() -> None:
    config = TelemetryConfig(ratio=0.25)
    assembler = make_assembler(config)
    kept = [request_id for request_id in range(4_000) if assembler.is_in_ratio(request_id)]
    assert 850 < len(kept) < 1150
    events = [event for i in range(1, 100) for event in request_events(i, START_NS + i, segments=1)]
    assert list(infers(assemble(events, config))) == [i for i in kept if 0 < i < 100]


def test_a_kept_request_keeps_those_that_blocked_it() -> None:
    blocker = request_events(1, START_NS)
    victim = request_events(2, START_NS, blocked_by=(1,), deadline_ns=START_NS + 1)
    spans = infers(assemble(blocker + victim, NONE))
    assert set(spans) == {1, 2}
    assert spans[2].links[-1].target == (spans[1].trace_id, spans[1].span_id)


def test_a_blocker_that_ends_later_is_waited_for() -> None:
    *blocker, end = request_events(1, START_NS)
    victim = request_events(2, START_NS, blocked_by=(1,), deadline_ns=START_NS + 1)
    assembler = make_assembler(NONE)
    for event in blocker + victim:
        assembler.add(event)
    assert list(assembler.settle(START_NS + 3 * SETTLE_NS)) == []
    assembler.add(end)
    spans = infers(flat(assembler.settle(START_NS + 3 * SETTLE_NS)))
    assert spans[2].links[-1].target == (spans[1].trace_id, spans[1].span_id)


def test_a_blocker_that_never_ends_is_not_waited_for_and_not_linked() -> None:
    assembler = make_assembler(NONE)
    for event in request_events(1, START_NS)[:-1]:
        assembler.add(event)
    for event in request_events(2, START_NS, blocked_by=(1,), deadline_ns=START_NS + 1):
        assembler.add(event)
    assert list(assembler.settle(START_NS + OVERDUE_NS)) == []
    spans = infers(flat(assembler.settle(START_NS + OVERDUE_NS + SETTLE_NS)))
    assert spans[2].links == ()
    assert spans[2].attributes[names.BLOCKED_BY] == (1,)
    assert list(assembler.flush()) == []
    assert assembler.abandoned == 1


def test_a_caller_is_the_parent_and_decides_sampling() -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    parent = f"00-{trace_id}-{span_id}-01"
    root, child, *_ = assemble(request_events(1, START_NS, traceparent=parent), NONE)
    assert f"{root.trace_id:032x}" == trace_id
    assert f"{root.parent_id:016x}" == span_id
    assert (root.parent_is_remote, child.parent_is_remote) == (True, False)
    unsampled = parent[:-1] + "0"
    assert assemble(request_events(1, START_NS, traceparent=unsampled), NONE) == []
    invalid = request_events(1, START_NS, traceparent="00-00-00-00")
    assert assemble(invalid)[0].parent_id == 0


def test_many_kernels_are_aggregated_by_operator() -> None:
    config = TelemetryConfig(ratio=1.0, max_spans=10)
    spans = assemble(load_events() + request_events(1, START_NS + 200_000), config)
    assert outline(spans)[11:] == [
        "    stream 0",
        "      copy.in",
        "      Conv",
        "      Relu",
        "      MatMul",
        "      copy.out",
    ]
    conv = spans[13]
    assert conv.attributes[names.AGGREGATED] is True
    assert conv.attributes[names.CALLS] == 4
    assert conv.attributes[names.DURATION_NS] == 4 * 10_680
    assert spans[10].attributes[names.DECISIONS_OMITTED] == 1


def test_unstamped_and_unwanted_kernels_show_as_segments() -> None:
    unstamped = load_events() + request_events(1, START_NS + 200_000, stamped=False)
    assert [span.name for span in assemble(unstamped)].count("segment") == 2
    stamped = load_events() + request_events(1, START_NS + 200_000)
    never = TelemetryConfig(ratio=1.0, kernels="never")
    assert [span.name for span in assemble(stamped, never)].count("segment") == 2


@pytest.mark.parametrize("ratio", [1.0, 0.1])
def test_same_events_give_the_same_spans_however_they_are_cut(ratio: float) -> None:
    config = TelemetryConfig(ratio=ratio)
    events = load_events()
    for i in range(1, 120):
        start_ns = START_NS + i * SETTLE_NS // 4
        events += request_events(i, start_ns, blocked_by=tuple(range(max(1, i - 9), i)))
    whole = sorted(assemble(events, config))
    rng = random.Random(5)
    for chance in (1.0, 0.5, 0.1, 0.03):
        assembler = make_assembler(config)
        spans = []
        for event in events:
            assembler.add(event)
            if isinstance(event, RequestFinished) and rng.random() < chance:
                spans += flat(assembler.settle(event.at_ns))
        assert len(spans) > len(whole) // 2
        assert sorted(spans + flat(assembler.flush())) == whole


def test_events_of_several_threads_may_come_in_any_order_before_settling() -> None:
    events = request_events(4, START_NS)
    expected = assemble(events)
    for _ in range(3):
        random.Random(3).shuffle(events)
        shuffled = assemble(events)
        assert [span[:8] for span in shuffled] == [span[:8] for span in expected]


def test_what_comes_after_settling_is_ignored() -> None:
    assembler = make_assembler()
    first, *events = request_events(1, START_NS)
    for event in events:
        assembler.add(event)
    assert list(assembler.settle(START_NS + 3 * SETTLE_NS))
    assembler.add(first)
    assert list(assembler.flush()) == []
    assert assembler.abandoned == 0


def test_a_stage_heard_of_too_late_links_to_its_request() -> None:
    events = item_events(1, 2, START_NS)
    late = [event for event in events if not hasattr(event, "model")]
    assembler = make_assembler()
    for event in events:
        if hasattr(event, "model"):
            assembler.add(event)
    (infer,) = infers(flat(assembler.settle(START_NS + 3 * SETTLE_NS))).values()
    for event in late:
        assembler.add(event)
    stage = next(span for span in flat(assembler.flush()) if span.name == "model detect")
    assert stage.links[0].target == (infer.trace_id, infer.span_id)


def test_kernels_of_an_unknown_model_are_not_invented() -> None:
    spans = assemble(request_events(1, START_NS))
    assert [span.name for span in spans].count("segment") == 2


def test_expired_in_the_queue_never_executes() -> None:
    assert outline(assemble(expired_events(1, START_NS))) == [
        "infer detector",
        "  queue.wait",
        "  schedule.decide",
    ]


@pytest.mark.parametrize("lost", [SegmentFinished, RequestFinished])
def test_lost_events_cost_what_they_told_and_no_more(lost: type[Event]) -> None:
    assembler = make_assembler()
    for event in request_events(1, START_NS):
        if not isinstance(event, lost):
            assembler.add(event)
    spans = flat(assembler.flush())
    assert bool(spans) == (lost is SegmentFinished)
    assert assembler.abandoned == (lost is RequestFinished)


def test_what_stays_open_after_a_loss_is_given_up_and_without_one_it_is_not() -> None:
    assembler = make_assembler()
    for event in request_events(1, START_NS)[:-1]:
        assembler.add(event)
    much_later_ns = START_NS + 3 * LOST_NS
    assert list(assembler.settle(much_later_ns)) == []
    assert assembler.abandoned == 0
    assembler.note_dropped(5, much_later_ns)
    for event in request_events(2, much_later_ns)[:-1]:
        assembler.add(event)
    assert list(assembler.settle(much_later_ns)) == []
    assert assembler.abandoned == 1
    assembler.add(request_events(2, much_later_ns)[-1])
    (infer,) = infers(flat(assembler.flush())).values()
    assert infer.attributes[names.DROPPED_EVENTS] == 5
    assert infer.attributes[names.REQUEST_ID] == 2
