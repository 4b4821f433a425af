"""The words in which execution asks a device for kernels, and the device answers.

This file lies below both layers: a device never sees an `ExecutionGraph`, and a graph never
sees an address. Execution describes one operator as a `KernelRequest`; the device answers with
a `KernelChoice` (*select*), whose wishes for scratch, in-place writing and packed constants are
inputs of the memory plan; once memory is planned and reserved, the device turns choice and
addresses into a call that takes nothing at run time (*bind*).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, Self

import numpy as np

from aegis_pipe.record import record
from aegis_pipe.tensor import TensorSpec

_Scalar = int | float | str | bytes
Attribute = _Scalar | tuple[_Scalar, ...] | np.ndarray | None
"""A static attribute of an operator, in canonical form."""

ReferenceFunction = Callable[[Sequence[np.ndarray | None]], Sequence[np.ndarray]]
"""Evaluates an operator on the host: arrays in, newly made arrays out."""


@record()
class KernelRequest:
    """One operator with everything that is known about it at load.

    The operator is in *canonical form*: whatever its opset, its static parameters (axes, pads,
    a reshape's target, ...) are attributes with the meaning of the newest opset, with defaults
    filled in and negative axes resolved; `inputs` holds the data operands only.
    """

    operator: str
    """Canonical name: `Conv`; with domain outside ai.onnx: `com.microsoft.BiasGelu`."""
    node: str
    """The node's name, for messages and traces only."""
    attributes: Mapping[str, Attribute]
    inputs: tuple[TensorSpec | None, ...]
    """Data operands in order; None where an optional one is left out."""
    outputs: tuple[TensorSpec | None, ...]
    """Results in order; None where nobody wants an optional one."""
    constants: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Values of the data operands known at load (weights), by position in `inputs`."""
    tf32: bool = False
    """Products of float32 may round their operands to ten bits of mantissa."""
    reference: ReferenceFunction | None = None
    """Host evaluation of the same operator; a device that has no kernel may offer to call it."""
    notes: dict[str, Any] = field(init=False, repr=False, default_factory=dict)
    """What a device worked out about it, for the next of its kernels that is asked."""


@record()
class PackedConstant:
    """A constant operand that the kernel wants in a layout of its own."""

    layout: str
    """Name of the layout; the same constant in the same layout is stored once."""
    size_bytes: int
    pack: Callable[[np.ndarray], np.ndarray]
    """Original constant in, packed bytes (uint8[size_bytes]) out."""
    fill: Callable[[np.ndarray, np.ndarray], None] | None = None
    """Writes the same bytes into the second array, for those large enough to be written once."""

    @classmethod
    def filled(
        cls, layout: str, size_bytes: int, fill: Callable[[np.ndarray, np.ndarray], None]
    ) -> Self:
        """Return one that is made by `fill`, which writes every byte."""

        def pack(array: np.ndarray) -> np.ndarray:
            packed = np.empty(size_bytes, np.uint8)
            fill(array, packed)
            return packed

        return cls(layout, size_bytes, pack, fill)


@record()
class KernelChoice:
    """A device's offer to run one `KernelRequest`."""

    kernel: str
    """The kernel's name: `conv2d.numpy`, `reference.Loop`; low cardinality, shown in traces."""
    workspace_bytes: int = 0
    """Scratch alive during this step only."""
    in_place: tuple[tuple[int, int], ...] = ()
    """(input, output) positions whose storage may be the same, if the input dies here."""
    view: tuple[int, int] | None = None
    """(input, output) positions that are the same bytes: no kernel runs at all (a reshape)."""
    packed: Mapping[int, PackedConstant] = field(default_factory=dict)
    """Constant operands wanted in another layout, by position in `inputs`."""
    is_reference: bool = False
    """Runs on the host through `KernelRequest.reference`; the plan says so."""
    cost: float = 0.0
    """Estimated work (multiply-adds plus elements moved); for cutting segments before profiles."""
    variant: str = ""
    """Which of the kernel's ways to do it, where it has several; for the device only."""
