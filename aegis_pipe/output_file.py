"""A file that a run writes to: whole records or nothing, and one process at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

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
