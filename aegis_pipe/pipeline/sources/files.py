"""Files of a folder in the order of their names, gone through once, several times or for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Values


def list_files(path: Path, pattern: str, suffixes: frozenset[str], source: str) -> list[Path]:
    """Return `path` itself if it is a file, or the matching files in it, sorted by name.

    Raises PipelineError if there is none.
    """
    if path.is_file():
        return [path]
    found = sorted(file for file in path.glob(pattern) if file.suffix.lower() in suffixes)
    if not found:
        problem = f"nothing in `{path}` matches `{pattern}`" if path.is_dir() else "is not there"
        raise PipelineError(
            problem if path.is_dir() else f"`{path}` {problem}",
            context=f"source `{source}`",
            hint=f"files are recognised by their suffix: {', '.join(sorted(suffixes))}",
        )
    return found


class FileItems(Iterator[Values]):
    """Reads each file when its turn comes.

    A class, because a generator would end at the first file that raises.
    """

    def __init__(self, files: list[Path], passes: int, read: Callable[[Path], Values]) -> None:
        """Go through the files `passes` times; 0: for ever."""
        self._files = files
        self._left = passes * len(files) if passes else None
        self._next = 0
        self._read = read

    def __next__(self) -> Values:
        if self._left is not None:
            if self._left == 0:
                raise StopIteration
            self._left -= 1
        file = self._files[self._next]
        self._next = (self._next + 1) % len(self._files)
        return self._read(file)
