"""Convolutions by cuDNN with bias, residual and activation fused, addressed by numbers.

A `Convolution` says what is to be computed. `ConvolutionPlans` lists cuDNN's plans for it, and
builds them: in milliseconds, or, where cuDNN compiles a kernel, in 0.2 to 2 s, while nothing else
of this interpreter runs (`plan_builders.py` has other processes do it). A `BuiltPlan` is bytes, and
loads as a `ConvolutionPlan`. Enqueueing works inside stream capture, and takes about 0.1 ms of
Python, so that it belongs there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final, Protocol

_DATA_TYPES: Final = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}

ACTIVATIONS: Final = ("", "relu", "clip", "sigmoid", "swish", "tanh", "gelu", "gelu_tanh", "elu")
"""What can follow in the same kernel."""

_UIDS: Final = {"x": 1, "w": 2, "bias": 3, "residual": 4, "y": 5}
"""By which a plan that was written down knows its operands again."""


def load_library() -> ModuleType:
    """Import the binding; ImportError if the `cuda` extra is missing."""
    import cudnn

    return cudnn  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Convolution:
    """Y = activation(conv(X, W) + bias + residual), everything channels-last.

    X is [batch, *spatial, channels], W [filters, *window, channels / groups], bias [filters],
    Y and residual [batch, *result, filters]; two spatial axes.
    """

    batch: int
    channels: int
    spatial: tuple[int, ...]
    filters: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_before: tuple[int, ...]
    pads_after: tuple[int, ...]
    dtype: str
    """float32, float16 or bfloat16; sums are in float32."""
    groups: int = 1
    bias: bool = False
    residual: bool = False
    activation: str = ""
    clip: tuple[float, float] = (0.0, 0.0)
    """Bounds of the activation `clip`."""
    tf32: bool = False
    """Let tensor cores round float32 operands to ten bits of mantissa."""

    @property
    def result(self) -> tuple[int, ...]:
        """Return the spatial extents of Y."""
        axes = zip(
            *(self.spatial, self.window, self.strides, self.dilations),
            *(self.pads_before, self.pads_after),
            strict=True,
        )
        return tuple(
            (size + before + after - (dilation * (window - 1) + 1)) // stride + 1
            for size, window, stride, dilation, before, after in axes
        )


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """One of cuDNN's plans with the kernels that were compiled for it, for this cuDNN and GPU."""

    name: str
    """cuDNN's for engine and settings."""
    workspace_bytes: int
    content: bytes = field(repr=False)
    """As cuDNN writes it down: a plan loads from it in milliseconds, with nothing to compile."""


class Library(Protocol):
    """Where plans can be built."""

    library: ModuleType

    def new_graph(self, **types: Any) -> Any:
        """Return cuDNN's graph with nothing in it."""
        ...


class Cudnn:
    """The library's handle for the current context; enqueueing points it to a stream.

    Plans are for all contexts of a GPU, a handle only for the one that was current when it was
    made: a part of the GPU has a context of its own.
    """

    def __init__(self, context: int = 0) -> None:
        """`context` is the driver's handle of the current one, by which `enter` knows it again."""
        self.library = load_library()
        self._context = context
        self._handles: dict[int, Any] = {context: self.library.create_handle()}

    @property
    def handle(self) -> Any:
        """For this folder's calls only."""
        assert self._handles, "closed"
        return self._handles[self._context]

    @property
    def version(self) -> int:
        """91900 for 9.19.0."""
        return int(self.library.backend_version())

    def properties(self, ordinal: int) -> str:
        """Return what cuDNN wants to know of a GPU, for a `DescribedDevice`."""
        return str(self.library.create_device_properties(ordinal).serialize())

    def new_graph(self, **types: Any) -> Any:
        """Return a graph for the device whose context is current."""
        return self.library.pygraph(handle=self.handle, **types)

    def enter(self, context: int) -> None:
        """Use the handle of this context, which is current."""
        if context not in self._handles:
            self._handles[context] = self.library.create_handle()
        self._context = context

    def close(self) -> None:
        """Release; idempotent."""
        while self._handles:
            self.library.destroy_handle(self._handles.popitem()[1])


class DescribedDevice:
    """The library for a GPU known by its properties alone: plans are built, and can not be run."""

    def __init__(self, properties: str, capability: int) -> None:
        """`properties` are what `Cudnn.properties` gave; `capability` is 90 for 9.0."""
        self.library = load_library()
        self._properties = self.library.create_device_properties(properties)
        self._capability = capability

    def new_graph(self, **types: Any) -> Any:
        """Return a graph for that device."""
        return self.library.pygraph(
            device_property=self._properties, sm_version=self._capability, **types
        )


class ConvolutionPlans:
    """The plans cuDNN lists for a convolution, what it thinks best first; none is built yet.

    Only those that give the same bits every time. RuntimeError (cuDNN's own) if there is none.
    """

    def __init__(self, cudnn: Library, convolution: Convolution) -> None:
        self.convolution = convolution
        self._library = cudnn.library
        self._graph = cudnn.new_graph(
            io_data_type=self._type(convolution.dtype),
            intermediate_data_type=self._library.data_type.FLOAT,
            compute_data_type=self._library.data_type.FLOAT,
        )
        self._build_graph()
        self._graph.validate()
        self._graph.build_operation_graph()
        self._list_plans()

    def __len__(self) -> int:
        return int(self._graph.get_execution_plan_count())

    def is_compiled(self, index: int) -> bool:
        """Return whether building a plan compiles its kernel, unless one like it was before."""
        notes = self._graph.get_behavior_notes_for_plan_at_index(index)
        return self._library.behavior_note.RUNTIME_COMPILATION in notes

    def build(self, index: int) -> BuiltPlan | None:
        """Build a plan; None if it is impossible, as some of those that are listed are."""
        try:
            self._graph.build_plan_at_index(index)
        except (RuntimeError, self._library.cudnnGraphNotSupportedError):
            return None
        return BuiltPlan(
            self._name(index),
            int(self._graph.get_workspace_size_plan_at_index(index)),
            # Of what was built last.
            bytes(self._graph.serialize()),
        )

    def named(self, name: str) -> BuiltPlan:
        """Build the plan that had this name in an earlier run; RuntimeError if there is none."""
        for index in range(len(self)):
            if self._name(index) == name and (found := self.build(index)) is not None:
                return found
        raise RuntimeError(f"cuDNN does not offer the plan {name} any more")

    def _list_plans(self) -> None:
        """Have cuDNN list the plans that give the same bits every time; builds none."""
        library, graph = self._library, self._graph
        modes = library.heur_mode
        graph.create_execution_plans([modes.A, modes.FALLBACK])
        notes = library.numerical_note
        unwanted = [notes.NONDETERMINISTIC, notes.REDUCED_PRECISION_REDUCTION]
        if self.convolution.dtype == "float32" and not self.convolution.tf32:
            unwanted += [notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS]
        graph.deselect_numeric_notes(unwanted)
        graph.check_support()

    def _name(self, index: int) -> str:
        return str(self._graph.get_plan_name_at_index(index))

    def _build_graph(self) -> None:
        c, graph = self.convolution, self._graph
        x = self._tensor("x", (c.batch, c.channels, *c.spatial))
        w = self._tensor("w", (c.filters, c.channels // c.groups, *c.window))
        y = graph.conv_fprop(
            image=x,
            weight=w,
            pre_padding=list(c.pads_before),
            post_padding=list(c.pads_after),
            stride=list(c.strides),
            dilation=list(c.dilations),
        )
        if c.bias:
            bias = self._tensor("bias", (1, c.filters, *(1,) * len(c.spatial)))
            y = graph.bias(name="add_bias", input=y, bias=bias)
        if c.residual:
            y = graph.add(a=y, b=self._tensor("residual", (c.batch, c.filters, *c.result)))
        y = self._activate(y)
        y.set_output(True).set_data_type(self._type(c.dtype)).set_uid(_UIDS["y"])
        y.set_dim([c.batch, c.filters, *c.result])
        y.set_stride(_channels_last((c.batch, c.filters, *c.result)))

    def _activate(self, y: Any) -> Any:
        graph, activation = self._graph, self.convolution.activation
        assert activation in ACTIVATIONS
        if activation == "clip":
            lower, upper = self.convolution.clip
            return graph.relu(y, lower_clip=lower, upper_clip=upper)
        methods = {"": None, "gelu_tanh": "gelu_approx_tanh"}
        method = methods.get(activation, activation)
        return y if method is None else getattr(graph, method)(y)

    def _tensor(self, name: str, extents: tuple[int, ...]) -> Any:
        return self._graph.tensor(
            name=name,
            dim=list(extents),
            stride=_channels_last(extents),
            data_type=self._type(self.convolution.dtype),
        ).set_uid(_UIDS[name])

    def _type(self, dtype: str) -> Any:
        return getattr(self._library.data_type, _DATA_TYPES[dtype])


class ConvolutionPlan:
    """A built plan, loaded; RuntimeError (cuDNN's own) if it is not one of this cuDNN and GPU."""

    def __init__(self, cudnn: Cudnn, convolution: Convolution, built: BuiltPlan) -> None:
        self.built = built
        self._cudnn = cudnn
        self._graph = cudnn.new_graph()
        self._graph.deserialize(cudnn.handle, bytearray(built.content))
        is_there = {"bias": convolution.bias, "residual": convolution.residual}
        self._uids = {name: uid for name, uid in _UIDS.items() if is_there.get(name, True)}

    def enqueue(
        self,
        stream: int,
        *,
        x: int,
        w: int,
        y: int,
        bias: int = 0,
        residual: int = 0,
        workspace: int = 0,
    ) -> None:
        """Enqueue it on a stream; operands are device addresses."""
        addresses = {"x": x, "w": w, "y": y, "bias": bias, "residual": residual}
        operands = {uid: addresses[name] for name, uid in self._uids.items()}
        self._cudnn.library.set_stream(self._cudnn.handle, stream)
        self._graph.execute(operands, workspace, handle=self._cudnn.handle)


def _channels_last(extents: tuple[int, ...]) -> list[int]:
    """Return the strides of [batch, channels, *spatial] whose channels lie next to each other."""
    strides = [0] * len(extents)
    step = 1
    for axis in (1, *range(len(extents) - 1, 1, -1), 0):
        strides[axis] = step
        step *= extents[axis]
    return strides
