from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_pipe.errors import PermanentError
from aegis_pipe.output_file import OutputFile, check_replaceable, replace_file

LIMITED = """
import resource, signal, sys
from pathlib import Path
from aegis_pipe.output_file import OutputFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
file = OutputFile(Path(sys.argv[1]))
for number in range(20):
    try:
        file.write(b"0123456789abcde\\n")
    except OSError as error:
        print(number, error.strerror)
        break
"""


def run(code: str, path: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip


def test_what_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    assert resource.RLIMIT_FSIZE
    path = tmp_path / "lines"
    assert run(LIMITED, path) == "6 File too large\n"
    assert path.read_bytes() == b"0123456789abcde\n" * 6


def test_another_process_is_kept_away_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    file = OutputFile(path)
    file.write(b"one\n")
    attempt = """
import sys
from pathlib import Path
from aegis_pipe.output_file import OutputFile
try:
    OutputFile(Path(sys.argv[1]))
except OSError as error:
    print(error.strerror)
"""
    assert run(attempt, path) == "another process is writing to it\n"
    assert path.read_bytes() == b"one\n"
    file.close()
    file.close()
    assert run(attempt, path) == ""


def test_the_same_process_may_add_to_it(tmp_path: Path) -> None:
    first = OutputFile(tmp_path / "new" / "lines")
    first.write(b"one\n")
    second = OutputFile(tmp_path / "new" / "lines", append=True)
    first.write(b"two\n")
    first.close()
    second.write(b"three\n")
    assert (tmp_path / "new" / "lines").read_bytes() == b"one\ntwo\nthree\n"
    assert OutputFile(tmp_path / "new" / "lines").size_bytes == 0


def test_devices_take_what_they_take() -> None:
    file = OutputFile(Path(os.devnull))
    file.write(b"gone")
    assert file.size_bytes == 4
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.write(b"late")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "text"
    replace_file(path, "one")
    limited = """
import resource, signal, sys
from pathlib import Path
from aegis_pipe.errors import PermanentError
from aegis_pipe.output_file import replace_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    replace_file(Path(sys.argv[1]), "two" * 100)
except PermanentError as error:
    print(error)
"""
    assert "can not be written: File too large" in run(limited, path)
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "none" / "text"):
        for write in (check_replaceable, lambda path: replace_file(path, "text")):
            with pytest.raises(PermanentError, match="can not be written") as caught:
                write(path)
            assert caught.value.hint
    check_replaceable(tmp_path / "text")
    assert not (tmp_path / "text").exists()


def test_a_full_disk_wants_room_and_no_other_name() -> None:
    with pytest.raises(PermanentError, match="No space left on device") as caught:
        replace_file(Path("/dev/full"), "text")
    assert caught.value.hint == "make room there"


def test_a_link_stays_one_and_a_device_takes_text(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "text")
    replace_file(tmp_path / "link", "one")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "text").read_text() == "one"
    replace_file(Path(os.devnull), "gone")
