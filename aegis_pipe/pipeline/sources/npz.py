"""Arrays of an `.npz` file, sliced along their first axis."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Values


class NpzSource:
    """Yields row i of every array as item i; all arrays have the same first dimension.

    `repeat` is how many times to go through them (0: for ever). With `keep_axis` each row keeps a
    leading axis of 1, as most models want.
    """

    def __init__(self, *, path: Path, repeat: int = 1, keep_axis: bool = True) -> None:
        self._arrays = _read(path)
        self._repeat = repeat
        self._keep_axis = keep_axis
        lengths = {name: len(array) for name, array in self._arrays.items()}
        if len(set(lengths.values())) != 1:
            raise PipelineError(
                f"the arrays of `{path}` have different lengths: {lengths}",
                context="source `npz`",
                hint="all arrays need the same first dimension: one row per item",
            )
        self._length = next(iter(lengths.values()))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the arrays, in the file's order."""
        return tuple(self._arrays)

    def items(self) -> Iterator[Values]:
        """Yield the rows."""
        passes = 0
        while self._repeat == 0 or passes < self._repeat:
            for row in range(self._length):
                end = row + 1
                yield {
                    name: array[row:end] if self._keep_axis else array[row]
                    for name, array in self._arrays.items()
                }
            passes += 1


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, because NumPy leaves the file open when it is damaged.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise PipelineError(
            f"`{path}` can not be read as an .npz file: {error}",
            context="source `npz`",
            hint="write it with numpy.savez(path, name=array, ...)",
        ) from error
    scalars = [name for name, array in arrays.items() if array.ndim == 0]
    if scalars or not arrays or not all(map(len, arrays.values())):
        raise PipelineError(
            f"`{path}` holds no rows" if not scalars else f"array `{scalars[0]}` has no rows",
            context="source `npz`",
            hint="each array needs a first dimension with one row per item",
        )
    return arrays
