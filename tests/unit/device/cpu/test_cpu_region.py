import gc

import pytest

from aegis_pipe.device.cpu.region import ALIGNMENT_BYTES, CpuRegion, host_bytes


@pytest.mark.parametrize("size_bytes", [0, 1, 63, 64, 65, 100_000])
def test_memory_is_aligned_and_zeroed(size_bytes: int) -> None:
    regions = [CpuRegion.reserve(size_bytes) for _ in range(5)]
    for region in regions:
        memory = host_bytes(region)
        assert memory.ctypes.data % ALIGNMENT_BYTES == 0 or size_bytes == 0
        assert memory.size == size_bytes
        assert not memory.any()
        region.close()


def test_unclosed_owner_warns() -> None:
    region = CpuRegion.reserve(100)
    assert region.size_bytes == 100
    with pytest.warns(ResourceWarning, match=r"unclosed <CpuRegion owner, 100 bytes, open>"):
        del region


def test_forgotten_view_does_not_warn() -> None:
    owner = CpuRegion.reserve(100)
    owner.view(0, 10)
    gc.collect()
    owner.close()


def test_view_keeps_its_owner_from_being_forgotten() -> None:
    view = CpuRegion.reserve(100).view(10, 20).view(5, 5)
    gc.collect()
    assert host_bytes(view).size == 5
    with pytest.warns(ResourceWarning, match="100 bytes"):
        del view


def test_use_after_close_asserts() -> None:
    owner = CpuRegion.reserve(100)
    view = owner.view(0, 50)
    owner.close()
    owner.close()
    for closed in (owner, view):
        with pytest.raises(AssertionError, match="used after it was closed"):
            host_bytes(closed)
    assert repr(owner) == "<CpuRegion owner, 100 bytes, closed>"
    assert repr(view) == "<CpuRegion view, 50 bytes, closed>"


def test_foreign_region_asserts() -> None:
    with pytest.raises(AssertionError, match="belongs to another device"):
        host_bytes("a region of a device that is none")
