"""Arrays from `.npz` files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Values
from aegis_pipe.pipeline.sources.files import FileItems, list_files


class NpzSource:
    """Yields the arrays of one file per item; every file has the names of the first.

    `passes` is how many times to go through the files; 0: for ever.
    """

    def __init__(self, *, path: Path, passes: int = 1) -> None:
        self._files = list_files(path, "*", frozenset({".npz"}), "npz")
        self._passes = passes
        self._outputs = tuple(_read(self._files[0]))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the arrays, in the first file's order."""
        return self._outputs

    def items(self) -> Iterator[Values]:
        """Read the files, each when its turn comes."""
        return FileItems(self._files, self._passes, self._item)

    def _item(self, file: Path) -> Values:
        arrays = _read(file)
        missing = [name for name in self._outputs if name not in arrays]
        if missing:
            raise PipelineError(
                f"`{file}` has no array `{missing[0]}`",
                context="source `npz`",
                hint=f"`{self._files[0].name}` has it: give all files the same names",
            )
        return arrays


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, because NumPy leaves the file open when it is damaged.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise PipelineError(
            f"`{path}` can not be read as an .npz file: {error}",
            context="source `npz`",
            hint="write it with numpy.savez(path, name=array, ...)",
        ) from error
