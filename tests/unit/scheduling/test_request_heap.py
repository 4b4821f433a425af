import random

import pytest

from aegis_pipe.scheduling.request import LEGAL_MOVES, ExecutionRequest, RequestState
from aegis_pipe.scheduling.request_heap import RequestHeap


def make_requests(count):
    return [ExecutionRequest(number, "m", arrival_ns=0) for number in range(count)]


def fill(requests, keys):
    heap = RequestHeap()
    for request, key in zip(requests, keys, strict=True):
        heap.push((key, request.request_id), request)
    return heap


def test_pops_in_the_order_of_keys_then_numbers():
    heap = fill(make_requests(5), [3, 1, 2, 1, 0])
    assert [heap.pop().request_id for _ in range(5)] == [4, 1, 3, 2, 0]
    assert heap.head() is None


def test_removed_requests_never_come_out():
    requests = make_requests(200)
    dice = random.Random(0)
    heap = fill(requests, [dice.randrange(20) for _ in requests])
    removed = dice.sample(requests, 120)
    assert all(heap.discard(request) for request in removed)
    assert not heap.discard(removed[0])
    assert len(heap) == 80
    left = {heap.pop().request_id for _ in range(80)}
    assert left == {request.request_id for request in requests if request not in removed}


def test_a_removed_request_can_be_pushed_again_under_another_key():
    first, second = make_requests(2)
    heap = fill([first, second], [1, 2])
    heap.discard(first)
    heap.push((3, first.request_id), first)
    assert [heap.pop(), heap.pop()] == [second, first]


def test_memory_is_in_proportion_to_what_is_inside():
    keeper, *others = make_requests(10_000)
    heap = fill([keeper], [-1])
    for request in others:
        heap.push((request.request_id, request.request_id), request)
        heap.discard(request)
        assert len(heap.heap) <= 2 * len(heap) + 65
    assert heap.pop() is keeper


def test_lifted_entries_come_back():
    heap = fill(make_requests(3), [1, 2, 3])
    entry = heap.lift()
    assert heap.head()[-1].request_id == 1
    heap.put_back(entry)
    assert [heap.pop().request_id for _ in range(3)] == [0, 1, 2]


def test_pushing_twice_is_our_mistake():
    [request] = make_requests(1)
    heap = fill([request], [1])
    with pytest.raises(AssertionError, match="request 0 is here"):
        heap.push((1, 0), request)


@pytest.mark.parametrize("state", RequestState)
@pytest.mark.parametrize("target", RequestState)
def test_a_request_moves_by_the_table_only(state, target):
    request = ExecutionRequest(1, "m", arrival_ns=0, state=state)
    if target in LEGAL_MOVES[state]:
        request.move(target)
        assert request.state is target
    else:
        with pytest.raises(AssertionError, match="not a legal move"):
            request.move(target)


def test_final_states_are_the_five_outcomes():
    final = {state for state in RequestState if state.is_final}
    assert final == {"completed", "failed", "expired", "rejected", "cancelled"}


def test_deadline_missed():
    request = ExecutionRequest(1, "m", arrival_ns=0, deadline_ns=100, finished_ns=100)
    assert not request.deadline_missed
    request.finished_ns = 101
    assert request.deadline_missed
    assert not ExecutionRequest(1, "m", arrival_ns=0, finished_ns=101).deadline_missed
