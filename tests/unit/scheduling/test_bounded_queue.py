import collections
import threading

import pytest

from aegis_pipe.errors import PermanentError
from aegis_pipe.scheduling import BoundedQueue, ExecutionRequest, Reason, make_policy


def make_queue(capacity=2, **options):
    return BoundedQueue(make_policy("fifo"), capacity, **options)


def request(number, model="m", deadline_ns=None):
    return ExecutionRequest(number, model, arrival_ns=number, deadline_ns=deadline_ns)


def test_a_full_queue_says_so_at_once():
    queue = make_queue(2)
    assert [queue.reserve("m") for _ in range(3)] == [None, None, Reason.QUEUE_FULL]


def test_a_place_is_free_again_when_its_request_leaves():
    queue = make_queue(2)
    first, second = request(1), request(2)
    for each in (first, second):
        assert queue.reserve("m") is None
        queue.push(each, 0)
    assert repr(queue) == "<BoundedQueue: 2 waiting, 2 of 2 places taken, open>"
    assert queue.pop(0) == (first, Reason.FIRST_ARRIVAL)
    assert queue.reserve("m") is None
    queue.release("m")
    queue.remove(second)
    assert (len(queue), queue.places_taken) == (0, 0)


def test_a_model_can_have_a_share_of_its_own():
    queue = make_queue(3, model_capacity={"small": 1})
    assert queue.reserve("small") is None
    assert queue.reserve("small") is Reason.QUEUE_FULL
    assert queue.reserve("other") is None
    queue.release("small")
    assert queue.reserve("small") is None


def test_a_closed_queue_lets_out_and_not_in():
    queue = make_queue()
    queue.reserve("m")
    queue.push(request(1), 0)
    queue.close()
    assert queue.reserve("m") is Reason.RUNTIME_STOPPING
    assert queue.pop(0)[0].request_id == 1


def test_the_bound_holds_among_threads():
    queue = make_queue(1000)
    barrier = threading.Barrier(4)
    got = []

    def take():
        barrier.wait()
        got.append(sum(queue.reserve("m") is None for _ in range(500)))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == queue.places_taken == 1000


def test_who_closes_a_queue_and_sees_no_place_taken_can_rely_on_it():
    """Whatever instant a submission was interrupted at: it holds a place then, or gets none."""
    queue = make_queue(capacity=1)

    class ClosedMeanwhile(collections.deque):
        def pop(self):
            queue.close()
            return super().pop()

    queue._places = ClosedMeanwhile([None])
    assert queue.reserve("m") is Reason.RUNTIME_STOPPING
    assert queue.places_taken == 0


def test_a_refused_share_takes_no_place_that_others_could_have():
    queue = make_queue(2, model_capacity={"small": 1})

    class Watched(collections.deque):
        def pop(self):
            taken.append(1)
            return super().pop()

    taken, queue._places = [], Watched([None] * 2)
    assert [queue.reserve("small"), queue.reserve("small")] == [None, Reason.QUEUE_FULL]
    assert len(taken) == queue.places_taken == 1


@pytest.mark.parametrize("options", [{"capacity": 0}, {"model_capacity": {"m": 0}}])
def test_a_queue_without_places_is_refused(options):
    with pytest.raises(PermanentError, match="can hold nothing"):
        make_queue(**options)
