"""What a graph looks like once it is recorded: edges, strands and stamps; no driver is called."""

from __future__ import annotations

import pytest

from aegis_pipe.device.cuda.recording import (
    Edge,
    Recorded,
    Strand,
    difference,
    stamp_rows,
    strands_of,
    wanted_edges,
)

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import graph
from aegis_pipe.device.cuda.graph import CudaKernelCall, WaitingLaunch

EARLY = "programmatic"
"""Stands for what the driver says of an edge."""
DIAMOND = (((1,), (2, 3)),)
"""Of five calls: one, then one beside two, then one."""


def keys(edges: list[Edge]) -> list[tuple[int, int, bool]]:
    return sorted(edge.key for edge in edges)


def chain(count: int, *early: int, first: int = 10) -> list[Edge]:
    """Return the edges of a chain of nodes, which are early that lead to those of `early`."""
    return [
        Edge(node - 1, node, EARLY if node in early else None)
        for node in range(first + 1, first + count)
    ]


def own(strand: int = 0, nodes: int = 1) -> Recorded:
    return Recorded(strand, nodes, waits=True)


def test_calls_without_forks_are_one_strand() -> None:
    assert strands_of(3, ()) == (Strand((0, 1, 2)),)
    assert strands_of(0, ()) == (Strand(()),)


def test_strands_without_a_fork_alternate_with_branches() -> None:
    assert strands_of(5, DIAMOND) == (
        Strand((0,)),
        Strand((1,), (0,), is_stamped=False),
        Strand((2, 3), (0,), is_stamped=False),
        Strand((4,), (1, 2)),
    )
    assert strands_of(4, [((0,), (1,)), ((2,), (3,))]) == (
        Strand(()),
        Strand((0,), (0,), is_stamped=False),
        Strand((1,), (0,), is_stamped=False),
        Strand((), (1, 2)),
        Strand((2,), (3,), is_stamped=False),
        Strand((3,), (3,), is_stamped=False),
        Strand((), (4, 5)),
    )


def test_a_fork_is_a_stretch() -> None:
    with pytest.raises(AssertionError, match="stretch"):
        strands_of(5, [((1,), (3,))])


def test_stamps_of_branches_begin_where_the_strand_before_ended() -> None:
    rows, count = stamp_rows(strands_of(5, DIAMOND), [True] * 5)
    # 0 | call 0 | 1, then call 1 | 2 beside call 2 | 3 call 3 | 4, then 5 | call 4 | 6
    assert rows.tolist() == [[0, 1], [1, 2], [1, 3], [3, 4], [5, 6]]
    assert count == 7


def test_a_call_that_launches_nothing_begins_and_ends_where_the_next_begins() -> None:
    rows, count = stamp_rows(strands_of(4, ()), [False, True, False, True])
    assert rows.tolist() == [[0, 0], [0, 1], [1, 1], [1, 2]]
    assert count == 3


def test_a_chain_stays_as_recorded() -> None:
    edges = chain(4, 11, 13)
    nodes = [13, 11, 10, 12]
    found = wanted_edges(nodes, edges, [own() for _ in nodes], strands_of(4, ()))
    assert keys(found) == keys(edges)
    assert not difference(edges, found)
    assert not difference(found, edges)


def test_an_edge_past_a_kernel_that_began_early_is_implied() -> None:
    """A kernel behind one that began early may be recorded to wait for the one before, too."""
    edges = [*chain(4, 11, 13), Edge(10, 12)]
    found = wanted_edges([10, 11, 12, 13], edges, [own() for _ in range(4)], strands_of(4, ()))
    assert keys(found) == keys(chain(4, 11, 13))
    assert difference(edges, found) == [Edge(10, 12)]


def test_an_edge_that_was_not_recorded_is_added() -> None:
    """What follows waits for the last kernel of a launch, not only for the one before that."""
    edges = [Edge(10, 11, EARLY), Edge(10, 12)]
    found = wanted_edges([10, 11, 12], edges, [own() for _ in range(3)], strands_of(3, ()))
    assert keys(found) == [(10, 11, True), (11, 12, False)]


def test_who_reads_too_much_too_early_begins_when_all_before_has_ended() -> None:
    library = Recorded(0, 1, unwaited=((0, 8),))
    writer = Recorded(0, 1, waits=True, written=((0, 8),))
    found = wanted_edges(
        [10, 11, 12], chain(3, 11, 12), [own(), writer, library], strands_of(3, ())
    )
    assert keys(found) == [(10, 11, True), (11, 12, False)]


def test_branches_part_and_meet_with_plain_edges() -> None:
    launches = [own(0), own(1), own(2), own(2), own(3)]
    edges = chain(5, 11, 12, 13, 14)
    found = wanted_edges(range(10, 15), edges, launches, strands_of(5, DIAMOND))
    assert keys(found) == [
        (10, 11, False),
        (10, 12, False),
        (11, 14, False),
        (12, 13, True),
        (13, 14, False),
    ]


def test_branches_of_the_first_calls_wait_for_nothing_and_a_join_without_calls_for_all() -> None:
    launches = [own(1), own(2), own(4), own(5)]
    strands = strands_of(4, [((0,), (1,)), ((2,), (3,))])
    found = wanted_edges(range(10, 14), chain(4, 11, 12, 13), launches, strands)
    assert keys(found) == [
        (10, 12, False),
        (10, 13, False),
        (11, 12, False),
        (11, 13, False),
    ]


def test_a_launch_of_several_nodes_keeps_its_inside() -> None:
    """A library that forks within a launch: 11 and 12 beside each other, 13 behind both."""
    edges = [
        Edge(10, 11),
        Edge(10, 12),
        Edge(11, 13),
        Edge(12, 13),
        Edge(13, 14, EARLY),
    ]
    launches = [own(), Recorded(0, 3), own()]
    found = wanted_edges(range(10, 15), edges, launches, strands_of(3, ()))
    # Not early behind a kernel that does not say when: that is no matter of the fork.
    assert keys(found) == [
        *[edge.key for edge in edges[:4]],
        (13, 14, False),
    ]
    assert not wanted_edges([], [], [], strands_of(0, ()))


def test_a_launch_without_nodes_is_passed_over() -> None:
    launches = [own(), Recorded(0, 0), own()]
    found = wanted_edges([10, 11], chain(2, 11), launches, strands_of(3, ()))
    assert keys(found) == [(10, 11, True)]


def _keep_fills(graph: int) -> None:
    """What is recorded here has none."""


class Driver:
    """Records nodes as the driver would: each behind the one before, early unless plain."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.edges: list[tuple[str, str, bool]] = []

    def begin_capture(self, stream: int) -> None:
        self.nodes.clear()

    def captured_count(self, stream: int) -> int:
        return len(self.nodes)

    def end_capture(self, stream: int) -> int:
        return 1

    def recorded(self, graph: int) -> tuple[list[int], list[Edge]]:
        late = ("stamp", "plain")
        edges = [
            Edge(at - 1, at, None if self.nodes[at].startswith(late) else EARLY)
            for at in range(1, len(self.nodes))
        ]
        return list(range(len(self.nodes))), edges

    def replace_edges(self, graph: int, removed: list[Edge], added: list[Edge]) -> None:
        edges = [edge for edge in self.recorded(graph)[1] if edge not in removed] + added
        names = [(self.nodes[edge.source], self.nodes[edge.target]) for edge in edges]
        self.edges = sorted(
            (*name, edge.kind is not None) for name, edge in zip(names, edges, strict=True)
        )

    def instantiate(self, graph: int) -> int:
        return 2

    def upload_graph(self, launchable: int, stream: int) -> None:
        pass

    def synchronise_stream(self, stream: int) -> None:
        pass


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(graph, "driver", driver)
    return driver


def test_the_capture_knows_whose_nodes_they_are(recorder: Driver) -> None:
    def launches(*nodes: str):
        return tuple(lambda stream, each=each: recorder.nodes.append(each) for each in nodes)

    calls = [
        CudaKernelCall("k", "first", tuple(map(WaitingLaunch, launches("first")))),
        # Ours, then two of a library's of one call, the latter of which adds what the former wrote.
        CudaKernelCall(
            "k",
            "second",
            (WaitingLaunch(*launches("second a")), *launches("plain", "second b")),
            unwaited=((0, 8),),
            written=((0, 8),),
        ),
        CudaKernelCall("k", "third", launches("third"), unwaited=((0, 8),)),
    ]
    assert graph._capture(7, calls, strands_of(3, ()), None, _keep_fills) == 2
    assert recorder.edges == [
        ("first", "second a", True),
        ("plain", "second b", False),
        ("second a", "plain", False),
        ("second b", "third", False),
    ]


def test_stamps_stand_between_calls_and_where_branches_meet(recorder: Driver) -> None:
    calls = [
        CudaKernelCall("k", each, (lambda stream, each=each: recorder.nodes.append(each),))
        for each in ("plain a", "plain b", "plain c", "plain d", "plain e")
    ]
    strands = strands_of(5, DIAMOND)

    def stamp(row: int) -> None:
        recorder.nodes.append(f"stamp {row}")

    graph._capture(7, calls, strands, stamp, _keep_fills)
    assert {(source[-1], target[-1]) for source, target, _ in recorder.edges} == {
        *[("0", "a"), ("a", "1")],
        *[("1", "b"), ("b", "2")],
        *[("1", "c"), ("c", "3"), ("3", "d"), ("d", "4")],
        *[("2", "5"), ("4", "5"), ("5", "e"), ("e", "6")],
    }
