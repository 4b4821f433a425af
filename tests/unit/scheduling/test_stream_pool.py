import pytest

from aegis_pipe.errors import PermanentError
from aegis_pipe.scheduling import ExecutionRequest, StreamPool


def request(number, model="m"):
    return ExecutionRequest(number, model, arrival_ns=0)


def test_gives_the_lowest_free_stream():
    pool = StreamPool(3)
    assert [pool.acquire(request(number)) for number in (10, 11, 12)] == [0, 1, 2]
    assert not pool.free
    pool.release(2)
    pool.release(0)
    assert repr(pool) == "<StreamPool: 2 of 3 free [- 11 -]>"
    assert pool.acquire(request(13)) == 0
    assert pool.holder(0).request_id == 13
    assert pool.holders_for("m") == (13, 11)


def test_a_confined_model_stays_on_its_streams():
    pool = StreamPool(3, allowed={"m": [2, 1]})
    assert pool.acquire(request(1)) == 1
    assert pool.acquire(request(2, "free")) == 0
    assert pool.acquire(request(3)) == 2
    assert pool.models_without_free() == {"m"}
    assert not pool.has_free_for("m")
    assert pool.holders_for("m") == (1, 3)
    assert [pool.models_barred_from(stream) for stream in range(3)] == [{"m"}, set(), set()]
    pool.release(0)
    assert pool.models_without_free() == {"m"}
    pool.release(2)
    assert pool.models_without_free() == set()


def test_a_model_that_may_use_all_streams_is_not_confined():
    pool = StreamPool(2, allowed={"m": [1, 0]})
    assert not pool.confines
    assert StreamPool(2, allowed={"m": [1, 0], "n": [1]}).confines
    assert [pool.acquire(request(1)), pool.acquire(request(2))] == [0, 1]
    assert pool.models_without_free() == set()


def test_hands_over_a_held_stream():
    pool = StreamPool(1)
    pool.acquire(request(1))
    pool.hand_over(0, request(2))
    assert pool.holder(0).request_id == 2


def test_misuse_is_our_mistake():
    pool = StreamPool(1)
    with pytest.raises(AssertionError, match="stream 0 is free already"):
        pool.release(0)
    pool.acquire(request(1))
    with pytest.raises(AssertionError, match="no free stream for `m`"):
        pool.acquire(request(2))


@pytest.mark.parametrize("allowed", [[], [3], [-1, 0]])
def test_a_model_without_a_stream_is_refused(allowed):
    with pytest.raises(PermanentError, match=r"model `m` is confined to streams .* 0 to 2"):
        StreamPool(3, allowed={"m": allowed})


def test_an_empty_pool_is_refused():
    with pytest.raises(PermanentError, match="0 streams can not run anything"):
        StreamPool(0)
