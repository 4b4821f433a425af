"""A file of lines that fails early or not at all: a run does not end because a disk is full."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aegis_pipe.errors import PermanentError


class LineFile:
    """A text file, replaced when opened, flushed after each group of lines.

    Making it raises a PermanentError if the path can not be written; missing folders are made.
    Writing raises nothing: it returns whether it went well.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self.problem = ""
        """What the last failed write said."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
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
            self._file.writelines(f"{line}\n" for line in lines)
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

    def close(self) -> None:
        """Close; idempotent. What a failed write left behind is given up."""
        try:
            self._file.close()
        except OSError as error:
            self.problem = error.strerror or str(error)
