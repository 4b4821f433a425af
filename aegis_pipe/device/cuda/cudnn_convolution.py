"""Convolutions by cuDNN with bias, residual and activation fused, addressed by numbers.

A `Convolution` says what is to be computed. `ConvolutionPlans` builds cuDNN's plans for it, at load
only: each in a millisecond, or, where cuDNN compiles the kernel, in 0.2 to 2 s, while nothing else
of the interpreter runs. It offers those that give the same bits every time, and enqueues one;
enqueueing works inside stream capture, and takes about 0.1 ms of Python, so that it belongs there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from aegis_pipe.device.cuda.lean_import import left_out

_DATA_TYPES: Final = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}

COMPILED_MAX: Final = 3
"""So many of the plans that cuDNN compiles are offered: over ResNet-50 with one and with eight
images later ones were the fastest way twice, by 0.4 us each."""

ACTIVATIONS: Final = ("", "relu", "clip", "sigmoid", "swish", "tanh", "gelu", "gelu_tanh", "elu")
"""What can follow in the same kernel."""


def load_library() -> ModuleType:
    """Import the binding; ImportError if the `cuda` extra is missing.

    It would import torch where that is installed, which takes seconds, for a wrapper that is not
    used here. Whoever uses that wrapper in the same process imports torch first.
    """
    with left_out("torch"):
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
class ConvolutionAlgorithm:
    """One plan by cuDNN's name for engine and settings, for this cuDNN and this GPU."""

    name: str
    workspace_bytes: int


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

    def enter(self, context: int) -> None:
        """Use the handle of this context, which is current."""
        if context not in self._handles:
            self._handles[context] = self.library.create_handle()
        self._context = context

    def close(self) -> None:
        """Release; idempotent."""
        while self._handles:
            self.library.destroy_handle(self._handles.popitem()[1])


class PlanUnavailable(Exception):  # noqa: N818 - caught by whoever can choose another
    """A plan of an earlier run is not to be had now."""


class ConvolutionPlans:
    """cuDNN's graph of one convolution and its built plans.

    With an `algorithm` of an earlier run only that plan is built; otherwise those that the
    heuristics offer, as they are asked for and as far as they can be built for this GPU. Raises
    RuntimeError (cuDNN's own) if there is none, PlanUnavailable if there is none of that name.
    """

    def __init__(
        self,
        cudnn: Cudnn,
        convolution: Convolution,
        algorithm: ConvolutionAlgorithm | None = None,
    ) -> None:
        self.convolution = convolution
        self._cudnn = cudnn
        library = cudnn.library
        self._graph = library.pygraph(
            handle=cudnn.handle,
            io_data_type=self._type(convolution.dtype),
            intermediate_data_type=library.data_type.FLOAT,
            compute_data_type=library.data_type.FLOAT,
        )
        self._tensors = self._build_graph()
        self._graph.validate()
        self._graph.build_operation_graph()
        self._list_plans()
        self._built: set[int] = set()
        self._listed = self._all() if algorithm is None else [self._only(algorithm)]

    def algorithms(self, workspace_max_bytes: int) -> Iterator[tuple[int, ConvolutionAlgorithm]]:
        """Yield plans by index, what the library thinks best first; builds each as it comes.

        Of those that are compiled, no more than `COMPILED_MAX`.
        """
        compiled = 0
        for index in self._listed:
            is_compiled = self._is_compiled(index)
            if (is_compiled and compiled == COMPILED_MAX) or not self._build(index):
                continue
            workspace_bytes = int(self._graph.get_workspace_size_plan_at_index(index))
            if workspace_bytes <= workspace_max_bytes:
                compiled += is_compiled
                yield index, ConvolutionAlgorithm(self._name(index), workspace_bytes)

    def enqueue(
        self,
        index: int,
        stream: int,
        *,
        x: int,
        w: int,
        y: int,
        bias: int = 0,
        residual: int = 0,
        workspace: int = 0,
    ) -> None:
        """Enqueue plan `index` on a stream; operands are device addresses."""
        addresses = {"x": x, "w": w, "y": y, "bias": bias, "residual": residual}
        operands = {tensor: addresses[name] for name, tensor in self._tensors.items()}
        self._cudnn.library.set_stream(self._cudnn.handle, stream)
        self._graph.execute_plan_at_index(operands, workspace, index, handle=self._cudnn.handle)

    def _list_plans(self) -> None:
        """Have cuDNN list the plans that give the same bits every time; builds none."""
        library, graph = self._cudnn.library, self._graph
        modes = library.heur_mode
        graph.create_execution_plans([modes.A, modes.FALLBACK])
        notes = library.numerical_note
        unwanted = [notes.NONDETERMINISTIC, notes.REDUCED_PRECISION_REDUCTION]
        if self.convolution.dtype == "float32" and not self.convolution.tf32:
            unwanted += [notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS]
        graph.deselect_numeric_notes(unwanted)
        graph.check_support()

    def _all(self) -> Sequence[int]:
        return range(self._graph.get_execution_plan_count())

    def _only(self, algorithm: ConvolutionAlgorithm) -> int:
        listed = [index for index in self._all() if self._name(index) == algorithm.name]
        for index in listed:
            if self._build(index):
                return index
        what = "does not build" if listed else "does not list"
        raise PlanUnavailable(f"cuDNN {self._cudnn.version} {what} the plan {algorithm.name}")

    def _is_compiled(self, index: int) -> bool:
        notes = self._graph.get_behavior_notes_for_plan_at_index(index)
        return self._cudnn.library.behavior_note.RUNTIME_COMPILATION in notes

    def _build(self, index: int) -> bool:
        """Build a plan; what the heuristics list need not be possible, and is left out then."""
        if index not in self._built:
            try:
                self._graph.build_plan_at_index(index)
            except (RuntimeError, self._cudnn.library.cudnnGraphNotSupportedError):
                return False
            self._built.add(index)
        return True

    def _name(self, index: int) -> str:
        return str(self._graph.get_plan_name_at_index(index))

    def _build_graph(self) -> dict[str, Any]:
        c, graph = self.convolution, self._graph
        x = self._tensor("x", (c.batch, c.channels, *c.spatial))
        w = self._tensor("w", (c.filters, c.channels // c.groups, *c.window))
        tensors = {"x": x, "w": w}
        y = graph.conv_fprop(
            image=x,
            weight=w,
            pre_padding=list(c.pads_before),
            post_padding=list(c.pads_after),
            stride=list(c.strides),
            dilation=list(c.dilations),
        )
        if c.bias:
            tensors["bias"] = self._tensor("bias", (1, c.filters, *(1,) * len(c.spatial)))
            y = graph.bias(name="add_bias", input=y, bias=tensors["bias"])
        if c.residual:
            tensors["residual"] = self._tensor("residual", (c.batch, c.filters, *c.result))
            y = graph.add(a=y, b=tensors["residual"])
        y = self._activate(y)
        y.set_output(True).set_data_type(self._type(c.dtype))
        y.set_dim([c.batch, c.filters, *c.result])
        y.set_stride(_channels_last((c.batch, c.filters, *c.result)))
        return tensors | {"y": y}

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
        )

    def _type(self, dtype: str) -> Any:
        return getattr(self._cudnn.library.data_type, _DATA_TYPES[dtype])


def _channels_last(extents: tuple[int, ...]) -> list[int]:
    """Return the strides of [batch, channels, *spatial] whose channels lie next to each other."""
    strides = [0] * len(extents)
    step = 1
    for axis in (1, *range(len(extents) - 1, 1, -1), 0):
        strides[axis] = step
        step *= extents[axis]
    return strides
