"""One `.npz` file per item."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Values


class NpzSink:
    """Writes `<path>/<item>.npz`; the `npz` source reads such a folder."""

    def __init__(self, *, inputs: tuple[str, ...], path: Path) -> None:
        self._inputs = inputs
        self._path = path
        self._count = 0
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise self._failure(error) from error

    def write(self, item: int, values: Values) -> None:
        """Write one file: whole, or not at all."""
        part = self._path / f".{item:06d}.part"
        try:
            with part.open("wb") as file:
                np.savez(file, allow_pickle=False, **{name: values[name] for name in self._inputs})
            part.replace(self._path / f"{item:06d}.npz")
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise self._failure(error) from error
        self._count += 1

    def close(self) -> str:
        """Return how many files there are now."""
        return f"npz: {self._count} files in {self._path}"

    def _failure(self, error: OSError) -> PipelineError:
        return PipelineError(
            f"`{self._path}` can not be written: {error.strerror}",
            context="sink `npz`",
            hint="choose another `path`",
        )
