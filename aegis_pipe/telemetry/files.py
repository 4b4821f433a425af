"""A file of lines that fails early or not at all: a run does not end because a disk is full."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aegis_pipe.errors import PermanentError


class LineFile:
    """A text file, replaced when opened, flushed after each group of lines.

    At `max_bytes` it is continued in a new file; the full ones are kept as `<path>.1` (the latest)
    to `<path>.<keep>`, and those of an earlier run are deleted at the start.
    Making it raises a PermanentError if the path can not be written; missing folders are made.
    Writing raises nothing: it returns whether it went well.
    """

    def __init__(self, path: Path, *, max_bytes: int = 0, keep: int = 0) -> None:
        self.where = str(path)
        self._path = path
        self._max_bytes = max_bytes
        """0 for no limit."""
        self._keep = keep
        self._size_bytes = 0
        self.problem = ""
        """What the last failed write said."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for place in range(1, keep + 1):
                self._kept(place).unlink(missing_ok=True)
            self._file = path.open("w", encoding="ascii")
        except OSError as error:
            raise PermanentError(
                f"can not write `{path}`: {error.strerror}",
                context="telemetry",
                hint="choose another path in the manifest's `telemetry`, or make this one writable",
            ) from error

    def write(self, lines: Iterable[str]) -> bool:
        """Write lines (ASCII, without their ends) and flush; return whether that went well."""
        try:
            for line in lines:
                if 0 < self._max_bytes < self._size_bytes + len(line) + 1:
                    self._rotate()
                self._file.write(f"{line}\n")
                self._size_bytes += len(line) + 1
            self._file.flush()
        except OSError as error:
            self.problem = error.strerror or str(error)
            return False
        except ValueError:
            # Another thread closes it when the time for the end is over.
            if not self._file.closed:
                raise
            self.problem = "it was closed before all was written"
            return False
        return True

    def _rotate(self) -> None:
        """Go on in a new file. A line larger than the limit gets a file of its own."""
        if not self._size_bytes:
            return
        self._file.close()
        for place in range(self._keep, 1, -1):
            if self._kept(place - 1).exists():
                self._kept(place - 1).replace(self._kept(place))
        if self._keep:
            self._path.replace(self._kept(1))
        self._file = self._path.open("w", encoding="ascii")
        self._size_bytes = 0

    def _kept(self, place: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{place}")

    def close(self) -> None:
        """Close; idempotent. What a failed write left behind is given up."""
        try:
            self._file.close()
        except OSError as error:
            self.problem = error.strerror or str(error)
