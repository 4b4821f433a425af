"""The operator table: what execution knows about each operator, one entry each.

An entry says which operands have to be known at load (`static_inputs`: a reshape's target, a
slice's bounds), what the results' specs are (`infer`), and how the operator looks in canonical
form (`lower`). Kernels are the device's business; a test crosses this table with each device's.
Operators without an entry are inferred by ONNX's own shape inference and run as reference kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.execution.graph import OperatorNode
from aegis_pipe.kernel import Attribute
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorSpec


@record()
class OperatorContext:
    """An operator node with what is known of its operands."""

    node: OperatorNode
    inputs: tuple[TensorSpec | None, ...]
    """Specs by position; None where an optional operand is left out."""
    constants: Mapping[int, np.ndarray]
    """Values by position, for operands known at load."""


@record()
class Lowered:
    """An operator in canonical form: see `aegis_pipe.kernel.KernelRequest`."""

    operator: str
    attributes: Mapping[str, Attribute]
    data_inputs: tuple[int, ...]
    """Positions of the node's inputs that stay data operands, in the canonical order; -1: none."""


@dataclass(frozen=True, slots=True, eq=False)
class OperatorEntry:
    """One operator over all opsets it exists in."""

    name: str
    """Qualified: `Conv`, `com.microsoft.Gelu`."""
    infer: Callable[[OperatorContext], Sequence[TensorSpec]]
    """Specs of all outputs; raises InvalidModelError if the operands do not fit."""
    lower: Callable[[OperatorContext], Lowered]
    static_inputs: tuple[int, ...] = ()
    """Positions whose values must be known at load."""


class OperatorTable:
    """All entries, by qualified name."""

    def __init__(self) -> None:
        self._entries: dict[str, OperatorEntry] = {}

    def register(self, *entries: OperatorEntry) -> None:
        """Add entries; a name stands once."""
        for entry in entries:
            assert entry.name not in self._entries, f"operator {entry.name} is registered twice"
            self._entries[entry.name] = entry

    def get(self, qualified_operator: str) -> OperatorEntry | None:
        """Return the entry, or None if the operator has none."""
        return self._entries.get(qualified_operator)

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._entries))
