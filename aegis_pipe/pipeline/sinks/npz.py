"""All items in one `.npz` file, written as they come."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Values


class NpzSink:
    """Writes arrays `<item>/<value>`; read with `numpy.load(path)["000000/detect.boxes"]`."""

    def __init__(self, *, inputs: tuple[str, ...], path: Path) -> None:
        self._inputs = inputs
        self._path = path
        self._count = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._archive = zipfile.ZipFile(path, "w")
        except OSError as error:
            raise self._failure(error) from error

    def write(self, item: int, values: Values) -> None:
        """Append one item."""
        try:
            for name in self._inputs:
                with self._archive.open(f"{item:06d}/{name}.npy", "w") as file:
                    np.lib.format.write_array(file, values[name], allow_pickle=False)
        except OSError as error:
            raise self._failure(error) from error
        self._count += 1

    def close(self) -> str:
        """Write the archive's directory and close."""
        try:
            self._archive.close()
        except OSError as error:
            raise self._failure(error) from error
        return f"npz: {self._count} items in {self._path}"

    def _failure(self, error: OSError) -> PipelineError:
        return PipelineError(
            f"`{self._path}` can not be written: {error.strerror}",
            context="sink `npz`",
            hint="choose another `path`",
        )
