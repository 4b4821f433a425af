"""What was chosen stays chosen, whatever another process measures in the meantime."""

from __future__ import annotations

from pathlib import Path

from aegis_pipe.device.cuda.compiler import DiskCache
from aegis_pipe.device.cuda.tuning import RememberedChoices

WHAT, LIBRARY = ("a product", 3), "library 1"


def _opened(folder: Path) -> RememberedChoices:
    return RememberedChoices(DiskCache(folder), "some GPU")


def test_another_process_changes_nothing_for_those_that_run(tmp_path: Path) -> None:
    one, other = _opened(tmp_path), _opened(tmp_path)
    assert one.find(WHAT, LIBRARY) is None
    one.keep(WHAT, LIBRARY, {"name": "one's"})
    reader = _opened(tmp_path)
    assert reader.find(WHAT, LIBRARY) == {"name": "one's"}
    other.keep(WHAT, LIBRARY, {"name": "the other's"})
    assert one.find(WHAT, LIBRARY) == reader.find(WHAT, LIBRARY) == {"name": "one's"}
    assert _opened(tmp_path).find(WHAT, LIBRARY) == {"name": "the other's"}


def test_by_what_by_library_and_by_gpu(tmp_path: Path) -> None:
    _opened(tmp_path).keep(WHAT, LIBRARY, {"name": "this"})
    assert _opened(tmp_path).find(WHAT, "library 2") is None
    assert _opened(tmp_path).find(("a product", 4), LIBRARY) is None
    assert RememberedChoices(DiskCache(tmp_path), "another GPU").find(WHAT, LIBRARY) is None


def test_a_damaged_file_is_as_none(tmp_path: Path) -> None:
    _opened(tmp_path).keep(WHAT, LIBRARY, {"name": "this"})
    for content in (b"{", b"[1]"):
        for file in tmp_path.rglob("*.choice.json"):
            file.write_bytes(content)
        assert _opened(tmp_path).find(WHAT, LIBRARY) is None
