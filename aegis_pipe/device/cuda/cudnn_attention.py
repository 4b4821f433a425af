"""Attention by cuDNN: scores, mask, softmax and weighted sum in one kernel, for half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from aegis_pipe.device.cuda.cudnn_convolution import Cudnn

_DATA_TYPES: Final = {"float16": "HALF", "bfloat16": "BFLOAT16"}


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """Y = softmax(Q K^T * scale + mask) V per head; strides of (batch, head, position), elements.

    Q is [batch, heads, length, size], K and V [batch, kv_heads, kv_length, size]; sizes lie dense.
    """

    batch: int
    heads: int
    kv_heads: int
    length: int
    kv_length: int
    size: int
    value_size: int
    q_strides: tuple[int, int, int]
    k_strides: tuple[int, int, int]
    v_strides: tuple[int, int, int]
    y_strides: tuple[int, int, int]
    dtype: str
    """float16 or bfloat16; sums are in float32."""
    scale: float
    is_causal: bool = False
    mask: tuple[int, int, int, int] | None = None
    """Extents of what is added to the scores, dense; 1 where it is broadcast."""


class AttentionPlan:
    """cuDNN's graph of one attention, built; RuntimeError (cuDNN's own) if it has no way."""

    def __init__(self, cudnn: Cudnn, attention: FusedAttention) -> None:
        self._cudnn = cudnn
        library, a = cudnn.library, attention
        kind = getattr(library.data_type, _DATA_TYPES[a.dtype])
        self._graph = library.pygraph(
            handle=cudnn.handle,
            io_data_type=kind,
            intermediate_data_type=library.data_type.FLOAT,
            compute_data_type=library.data_type.FLOAT,
        )

        def tensor(name: str, dim: tuple[int, ...], strides: tuple[int, ...]) -> Any:
            return self._graph.tensor(
                name=name, dim=list(dim), stride=list(strides), data_type=kind
            )

        q = tensor("q", (a.batch, a.heads, a.length, a.size), (*a.q_strides, 1))
        k = tensor("k", (a.batch, a.kv_heads, a.kv_length, a.size), (*a.k_strides, 1))
        v = tensor("v", (a.batch, a.kv_heads, a.kv_length, a.value_size), (*a.v_strides, 1))
        options: dict[str, Any] = {}
        self._tensors = {"q": q, "k": k, "v": v}
        if a.mask is not None:
            _, heads, rows, columns = a.mask
            strides = (heads * rows * columns, rows * columns, columns, 1)
            options["bias"] = self._tensors["mask"] = tensor("mask", a.mask, strides)
        if a.is_causal:
            options["diagonal_band_right_bound"] = 0
        y, _ = self._graph.sdpa(
            name="attention", q=q, k=k, v=v, attn_scale=a.scale, generate_stats=False, **options
        )
        y.set_output(True).set_data_type(kind)
        y.set_dim([a.batch, a.heads, a.length, a.value_size]).set_stride([*a.y_strides, 1])
        self._tensors["y"] = y
        self._graph.validate()
        self._graph.build_operation_graph()
        self._graph.create_execution_plans([library.heur_mode.A, library.heur_mode.FALLBACK])
        self._graph.deselect_numeric_notes([library.numerical_note.NONDETERMINISTIC])
        self._graph.check_support()
        self._graph.build_plans(library.build_plan_policy.HEURISTICS_CHOICE)
        self.workspace_bytes = int(self._graph.get_workspace_size())

    def enqueue(self, stream: int, addresses: dict[str, int], workspace: int) -> None:
        """Enqueue it; `addresses` are those of `q`, `k`, `v`, `y` and, if there is one, `mask`."""
        library, handle = self._cudnn.library, self._cudnn.handle
        library.set_stream(handle, stream)
        operands = {tensor: addresses[name] for name, tensor in self._tensors.items()}
        self._graph.execute(operands, workspace, handle=handle)
