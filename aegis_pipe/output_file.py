"""Files that are written: whole records or nothing, by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

from aegis_pipe.errors import PermanentError

if sys.platform != "win32":
    import fcntl


class OutputFile:
    """Bytes appended to a file, at once and without a buffer of our own.

    A write that fails leaves nothing of it behind. What was in the file is replaced unless it is
    to be added to (`append`), and missing folders are made. Where the file is a regular one,
    another process can not open it meanwhile: two runs would mix their lines. Every method but
    `close` raises OSError.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        self._descriptor = os.open(path, flags, 0o666)
        self.size_bytes = 0
        """What is in the file; of one that is no regular file, what was written."""
        try:
            self._is_regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
            if self._is_regular:
                _lock(self._descriptor)
                if not append:
                    os.ftruncate(self._descriptor, 0)
                self.size_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)
        except BaseException:
            os.close(self._descriptor)
            raise

    def write(self, record: bytes | bytearray) -> None:
        """Write a record as a whole."""
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            if self._is_regular:
                with contextlib.suppress(OSError):
                    end = os.lseek(self._descriptor, 0, os.SEEK_END)
                    os.ftruncate(self._descriptor, end - (len(record) - len(rest)))
            raise
        self.size_bytes += len(record)

    @property
    def is_closed(self) -> bool:
        """Return whether it takes nothing any more."""
        return self._descriptor < 0

    def close(self) -> None:
        """Close; idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Keep other processes away until this one closes the file.

    POSIX record locks are the process's own: a reload opens files that it has open already.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise OSError(error.errno, "another process is writing to it") from error
        # A file system without locks.


def replace_file(path: Path, text: str) -> None:
    """Write a text file that is whole at every moment: the one before, or this one.

    Raises PermanentError if it can not be written.
    """
    place = path.resolve()
    # A device or a pipe takes it as it comes.
    part = place if _is_special(place) else place.with_name(f".{place.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        if part != place:
            part.replace(place)
    except OSError as error:
        if part != place:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def check_replaceable(path: Path) -> None:
    """Raise the PermanentError of `replace_file` before the work that leads to the text."""
    place = path.resolve()
    try:
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not _is_special(place):
            probe = place.with_name(f".{place.name}.part")
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _is_special(place: Path) -> bool:
    return place.exists() and not place.is_file()


def _unwritable(path: Path, error: OSError) -> PermanentError:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return PermanentError(
        f"`{path}` can not be written: {error.strerror or error}",
        hint="make room there"
        if is_full
        else "name a file in a folder that exists and is writable",
    )
