"""One JSON object per item and line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from aegis_pipe.errors import PipelineError
from aegis_pipe.output_file import OutputFile
from aegis_pipe.pipeline.parts import Values


class JsonlSink:
    """Writes `{"item": n, "<value>": [...], ...}`; not-a-number and infinities become null.

    Replaces what is in the file, unless it is to `append`.
    """

    def __init__(self, *, inputs: tuple[str, ...], path: Path, append: bool = False) -> None:
        self._inputs = inputs
        self._path = path
        self._count = 0
        try:
            self._file = OutputFile(path, append=append)
        except OSError as error:
            raise PipelineError(
                f"`{path}` can not be written: {error.strerror}",
                context="sink `jsonl`",
                hint="choose another `path`",
            ) from error

    def write(self, item: int, values: Values) -> None:
        """Write one line."""
        line = {"item": item} | {name: _plain(values[name].tolist()) for name in self._inputs}
        try:
            self._file.write(json.dumps(line, allow_nan=False).encode("ascii") + b"\n")
        except OSError as error:
            raise PipelineError(
                f"`{self._path}` can not be written: {error.strerror}", context="sink `jsonl`"
            ) from error
        self._count += 1

    def close(self) -> str:
        """Close, and return how many lines there are."""
        self._file.close()
        return f"jsonl: {self._count} lines in {self._path}"


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
