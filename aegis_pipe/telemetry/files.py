"""A file of lines that fails early or not at all: a run does not end because a disk is full."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aegis_pipe.errors import PermanentError
from aegis_pipe.output_file import OutputFile


class LineFile:
    """A text file, replaced when opened; lines are there as soon as they are written, and whole.

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
        self.problem = ""
        """What the last failed write said."""
        try:
            self._file = OutputFile(path)
            for place in range(1, keep + 1):
                self._kept(place).unlink(missing_ok=True)
        except OSError as error:
            raise PermanentError(
                f"can not write `{path}`: {error.strerror}",
                context="telemetry",
                hint="choose another path in the manifest's `telemetry`, or make this one writable",
            ) from error

    def write(self, lines: Iterable[str]) -> bool:
        """Write lines (ASCII, without their ends); return whether that went well."""
        pending = bytearray()
        try:
            for line in lines:
                size_bytes = self._file.size_bytes + len(pending)
                if 0 < self._max_bytes < size_bytes + len(line) + 1:
                    self._file.write(pending)
                    pending.clear()
                    self._rotate()
                pending += line.encode("ascii") + b"\n"
            self._file.write(pending)
        except OSError as error:
            # Another thread closes it when the time for the end is over.
            is_late = self._file.is_closed
            reason = error.strerror or str(error)
            self.problem = "it was closed before all was written" if is_late else reason
            return False
        return True

    def _rotate(self) -> None:
        """Go on in a new file. A line larger than the limit gets a file of its own."""
        if not self._file.size_bytes:
            return
        self._file.close()
        for place in range(self._keep, 1, -1):
            if self._kept(place - 1).exists():
                self._kept(place - 1).replace(self._kept(place))
        if self._keep:
            self._path.replace(self._kept(1))
        self._file = OutputFile(self._path)

    def _kept(self, place: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{place}")

    def close(self) -> None:
        """Close; idempotent."""
        self._file.close()
