"""The digest by which weights are shared: equal for equal bytes, and for no others that we try."""

import numpy as np
import pytest

from aegis_pipe.memory import native
from aegis_pipe.memory.content import content_digest

SIZES = [0, 1, 7, 8, 63, 64, 65, 128, 1023, 1024, 1025, 5000]


@pytest.fixture(params=["compiled", "hashlib"])
def digest(request, monkeypatch):
    if request.param == "hashlib":
        monkeypatch.setattr(native, "LIBRARY", None)
    elif native.LIBRARY is None:
        pytest.skip("the library is not built")
    return content_digest


@pytest.mark.parametrize("size", SIZES)
def test_every_bit_counts(digest, size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    digests = {digest(data)}
    for bit in range(8 * size):
        changed = data.copy()
        changed[bit // 8] ^= 1 << bit % 8
        digests.add(digest(changed))
    assert len(digests) == 1 + 8 * size


def test_length_counts_among_zeros(digest):
    assert len({digest(np.zeros(size, np.uint8)) for size in range(3000)}) == 3000


def test_place_counts(digest):
    blocks = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    orders = [np.roll(blocks, places, axis=0) for places in range(64)]
    swapped = [blocks.reshape(-1, 8)[:, ::-1], blocks[::-1], blocks.T]
    assert len({digest(one) for one in (*orders, *swapped)}) == 67


def test_equal_bytes_have_one_digest(digest):
    array = np.random.default_rng(0).standard_normal((33, 17)).astype(np.float32)
    assert digest(array) == digest(array.copy()) == digest(array.view(np.uint8))
    assert digest(array.T) == digest(np.ascontiguousarray(array.T)) != digest(array)


def test_address_does_not_count(digest):
    room = np.zeros(600, np.uint8)
    data = np.random.default_rng(0).integers(0, 256, 500, np.uint8)
    for first in range(64):
        room[first : first + 500] = data
        assert digest(room[first : first + 500]) == digest(data)
