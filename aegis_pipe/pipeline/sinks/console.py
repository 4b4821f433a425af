"""One line per item, for a person to look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aegis_pipe.pipeline.parts import Values

ELEMENTS_SHOWN = 8


class ConsoleSink:
    """Hands lines to `write_line`; shows every `every`-th item and few elements of each value."""

    def __init__(
        self, *, inputs: tuple[str, ...], write_line: Callable[[str], None], every: int = 1
    ) -> None:
        self._inputs = inputs
        self._write_line = write_line
        self._every = every
        self._seen = 0

    def write(self, item: int, values: Values) -> None:
        """Show one item, if it is its turn."""
        if self._seen % self._every == 0:
            shown = "  ".join(f"{name} = {_brief(values[name])}" for name in self._inputs)
            self._write_line(f"item {item}: {shown}")
        self._seen += 1

    def close(self) -> str:
        """Return how many items there were."""
        return f"console: {self._seen} items"


def _brief(array: np.ndarray) -> str:
    elements = array.reshape(-1)[:ELEMENTS_SHOWN].tolist()
    texts = [f"{e:.4g}" if isinstance(e, float) else str(e) for e in elements]
    more = f", ... ({array.size} in all)" if array.size > ELEMENTS_SHOWN else ""
    return f"[{', '.join(texts)}{more}]" if array.ndim else texts[0]
