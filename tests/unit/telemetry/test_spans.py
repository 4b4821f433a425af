from __future__ import annotations

from hypothesis import given, strategies as st

from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.ids import SpanReference
from aegis_pipe.telemetry.spans import EVENTS_MAX, SpanEvent, SpanNode, flatten

ROOT = SpanReference(5, 6)


def make_nodes(depth: int) -> st.SearchStrategy[SpanNode]:
    children = st.lists(make_nodes(depth - 1), max_size=4) if depth else st.just([])
    return st.builds(
        lambda start, length, below: SpanNode("x", start, start + length, children=below),
        st.integers(0, 20_000),
        st.integers(-5, 9_000),
        children,
    )


@given(make_nodes(3), st.integers(0, 10**6))
def test_any_tree_becomes_one_that_viewers_draw_right(root: SpanNode, offset: int) -> None:
    spans = flatten(root, ROOT, lambda instant_ns: instant_ns + offset)
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    assert spans[0].span_id == ROOT.span_id
    for span in spans:
        assert span.start_ns <= span.end_ns
        parent = by_id[span.parent_id] if span.parent_id else span
        assert parent.start_ns <= span.start_ns <= span.end_ns <= parent.end_ns
        true_ns = int(str(span.attributes[names.DURATION_NS]))
        assert true_ns >= 0


def test_a_span_gives_way_to_its_successor_by_less_than_two_microseconds() -> None:
    first, second = SpanNode("a", 1_200, 5_700), SpanNode("b", 5_800, 9_000)
    root = SpanNode("root", 1_000, 9_500, children=[second, first])
    _, shortened, _ = flatten(root, ROOT, lambda instant_ns: instant_ns)
    assert (shortened.start_ns, shortened.end_ns) == (1_200, 4_200)
    assert shortened.attributes[names.DURATION_NS] == 4_500


def test_spans_within_one_microsecond_keep_their_times() -> None:
    first, second = SpanNode("a", 1_200, 1_300), SpanNode("b", 1_400, 1_900)
    root = SpanNode("root", 1_000, 9_500, children=[first, second])
    spans = flatten(root, ROOT, lambda instant_ns: instant_ns)
    assert [(span.start_ns, span.end_ns) for span in spans[1:]] == [(1_200, 1_300), (1_400, 1_900)]


def test_too_many_events_are_counted() -> None:
    root = SpanNode("root", 0, 9)
    root.events = [SpanEvent(i, "e", {}) for i in range(EVENTS_MAX + 3)]
    (span,) = flatten(root, ROOT, lambda instant_ns: instant_ns + 1)
    assert len(span.events) == EVENTS_MAX
    assert span.events[0].at_ns == 1
    assert span.attributes[names.EVENTS_OMITTED] == 3


def test_fixed_ids_hold_for_the_subtree_and_shift_nobody_else() -> None:
    def ids(own: int) -> list[int]:
        middle = SpanNode("m", 2, 3, own_span_id=own, children=[SpanNode("leaf", 2, 3)])
        root = SpanNode("r", 0, 9, children=[SpanNode("a", 0, 1), middle, SpanNode("z", 4, 5)])
        return [span.span_id for span in flatten(root, ROOT, lambda instant_ns: instant_ns)]

    one, other = ids(77), ids(99)
    assert (one[2], other[2]) == (77, 99)
    assert one[3] != other[3]
    assert (one[:2], one[4]) == (other[:2], other[4])
