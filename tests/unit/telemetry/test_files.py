from __future__ import annotations

from pathlib import Path

from aegis_pipe.telemetry.files import LineFile


def test_full_files_are_kept_up_to_a_number(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    (tmp_path / "events.jsonl.1").write_text("of an earlier run\n")
    file = LineFile(path, max_bytes=30, keep=2)
    for number in range(10):
        assert file.write([f"line {number:04}"])
    file.close()
    names = sorted(found.name for found in tmp_path.iterdir())
    assert names == ["events.jsonl", "events.jsonl.1", "events.jsonl.2"]
    read = [(tmp_path / name).read_text().split() for name in reversed(names)]
    kept = [int(word) for words in read for word in words if word != "line"]
    assert kept == [3, 4, 5, 6, 7, 8, 9]
    assert all((tmp_path / name).stat().st_size <= 30 for name in names)


def test_a_line_over_the_limit_is_written_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    file = LineFile(path, max_bytes=10, keep=1)
    assert file.write(["x" * 50, "y"])
    file.close()
    assert path.read_text() == "y\n"
    assert (tmp_path / "events.jsonl.1").read_text() == "x" * 50 + "\n"


def test_nothing_is_kept_if_nothing_is_to_be(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "events.jsonl", max_bytes=10, keep=0)
    assert file.write(["a" * 8, "b" * 8])
    file.close()
    assert [found.read_text() for found in tmp_path.iterdir()] == ["b" * 8 + "\n"]
