"""Attention, a block of heads at a time so that the scores stay in cache.

Heads that share a key head are stacked into one taller query matrix, so keys and values are never
repeated. Masked scores are -inf; a row with nothing to attend to becomes 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import FLOAT16, planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorSpec

_SCORE_ELEMENTS = 256 << 10
"""Wanted size of a block of scores."""
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_BOOL = np.dtype(np.bool_)
_MASK, _PAST_KEY, _PAST_VALUE, _VALID_LENGTHS = 3, 4, 5, 6
_PRESENT_KEY, _PRESENT_VALUE, _SCORES = 1, 2, 3


@record(eq=True)
class _Sizes:
    batch: int
    heads: int
    kv_heads: int
    length: int
    total: int
    """Keys, those of the past included."""
    size: int
    value_size: int

    @property
    def repeats(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    @property
    def block(self) -> int:
        """Key heads in one block."""
        scores = max(1, self.repeats * self.length * self.total)
        return min(self.kv_heads, max(1, _SCORE_ELEMENTS // scores))


def _as_heads(array: np.ndarray, heads: int) -> np.ndarray:
    """Return a view [batch, heads, length, size] of either layout."""
    if array.ndim == 4:
        return array
    return array.reshape(*array.shape[:2], heads, -1).swapaxes(1, 2)


def _head_shape(spec: TensorSpec, heads: int) -> tuple[int, int, int, int]:
    if len(spec.shape) == 4:
        batch, heads, length, size = spec.shape
        return batch, heads, length, size
    batch, length, width = spec.shape
    return batch, heads, length, width // heads


def _sizes(request: KernelRequest) -> _Sizes:
    heads = operands.integer(request, "q_num_heads")
    kv_heads = operands.integer(request, "kv_num_heads")
    batch, _, length, size = _head_shape(operands.input_spec(request, 0), heads)
    _, _, total, _ = _head_shape(operands.input_spec(request, 1), kv_heads)
    *_, value_size = _head_shape(operands.input_spec(request, 2), kv_heads)
    if operands.has_input(request, _PAST_KEY):
        total += operands.input_spec(request, _PAST_KEY).shape[2]
    return _Sizes(batch, heads, kv_heads, length, total, size, value_size)


def _accepts(request: KernelRequest) -> bool:
    mask = request.inputs[_MASK] if operands.has_input(request, _MASK) else None
    floats = [spec for spec in request.inputs[:3] if spec] + [mask] * (
        mask is not None and mask.dtype != _BOOL
    )
    return (
        operands.input_spec(request, 0).dtype in _FLOATS
        and len({spec.dtype for spec in floats if spec}) == 1
    )


def _needs_scratch(request: KernelRequest, past: int, present: int) -> bool:
    return operands.has_input(request, past) and not operands.has_output(request, present)


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    sizes = _sizes(request)
    dtype = operands.input_spec(request, 0).dtype
    rows = sizes.repeats * sizes.length
    keys = (sizes.batch, sizes.kv_heads, sizes.total, sizes.size)
    values = (*keys[:3], sizes.value_size)
    mask = request.inputs[_MASK] if operands.has_input(request, _MASK) else None
    inverted = mask.shape if mask is not None and mask.dtype == _BOOL else (0,)
    return (
        TensorSpec(dtype, (sizes.batch, sizes.heads, sizes.length, sizes.size)),
        TensorSpec(dtype, (sizes.block, rows, sizes.total)),
        TensorSpec(dtype, (sizes.block, rows, 1)),
        TensorSpec(_BOOL, (sizes.block, rows, 1)),
        TensorSpec(dtype, keys if _needs_scratch(request, _PAST_KEY, _PRESENT_KEY) else (0,)),
        TensorSpec(dtype, values if _needs_scratch(request, _PAST_VALUE, _PRESENT_VALUE) else (0,)),
        TensorSpec(_BOOL, inverted),
        TensorSpec(_BOOL, (sizes.length, sizes.total) if _has_frontier(request) else (0,)),
        TensorSpec(_BOOL, (sizes.length, sizes.total) if _has_frontier(request) else (0,)),
    )


def _cost(request: KernelRequest) -> float:
    sizes = _sizes(request)
    scores = sizes.batch * sizes.heads * sizes.length * sizes.total
    return float(scores * (sizes.size + sizes.value_size))


def _has_frontier(request: KernelRequest) -> bool:
    """Whether which keys a query sees depends on their positions."""
    return (
        bool(operands.integer(request, "is_causal"))
        or max(_window(request)) >= 0
        or operands.has_input(request, _VALID_LENGTHS)
    )


def _window(request: KernelRequest) -> tuple[int, int]:
    return (
        operands.integer(request, "left_window_size"),
        operands.integer(request, "right_window_size"),
    )


def _joined(
    past: np.ndarray | None, new: np.ndarray, present: np.ndarray | None, spare: np.ndarray
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Return past and new keys (or values) as one array, and the copies that make it so."""
    if past is None and present is None:
        return new, []
    whole = spare if present is None else present
    before = 0 if past is None else past.shape[2]
    copies = [(whole[:, :, before:], new)]
    return whole, copies if past is None else [(whole[:, :, :before], past), *copies]


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    sizes = _sizes(request)
    queries, scores, statistic, is_empty, spare_keys, spare_values, *rest = scratch
    query = _as_heads(operands.required(inputs, 0), sizes.heads)
    keys, key_copies = _joined(
        operands.optional(inputs, _PAST_KEY),
        _as_heads(operands.required(inputs, 1), sizes.kv_heads),
        operands.optional(outputs, _PRESENT_KEY),
        spare_keys,
    )
    values, value_copies = _joined(
        operands.optional(inputs, _PAST_VALUE),
        _as_heads(operands.required(inputs, 2), sizes.kv_heads),
        operands.optional(outputs, _PRESENT_VALUE),
        spare_values,
    )
    grouped = queries.reshape(sizes.batch, sizes.kv_heads, -1, sizes.size)
    masking = _Masking(request, inputs, rest)
    blocks = [
        _Block(request, outputs, sizes, image, first, grouped, keys, values, scores)
        for image in range(sizes.batch)
        for first in range(0, sizes.kv_heads, sizes.block)
    ]
    scale = operands.number(request, "scale")

    def run() -> None:
        for target, source in (*key_copies, *value_copies):
            np.copyto(target, source)
        np.multiply(query, scale, out=queries)
        masking.prepare()
        for block in blocks:
            block.run(masking, statistic, is_empty)

    return run


class _Masking:
    """Which scores are -inf, and what is added to the others."""

    def __init__(
        self,
        request: KernelRequest,
        inputs: Sequence[np.ndarray | None],
        scratch: Sequence[np.ndarray],
    ) -> None:
        sizes = _sizes(request)
        inverted, self._hidden, self._spare = scratch
        self._is_causal = bool(operands.integer(request, "is_causal"))
        self._left, self._right = _window(request)
        self._has_frontier = _has_frontier(request)
        self._lengths = operands.optional(inputs, _VALID_LENGTHS)
        past = operands.optional(inputs, _PAST_KEY)
        self._past = 0 if past is None else past.shape[2]
        self._query_positions = np.arange(sizes.length)[:, None]
        self._key_positions = np.arange(sizes.total)
        self._length = sizes.length
        self._mask = operands.optional(inputs, _MASK)
        self._is_boolean = self._mask is not None and self._mask.dtype == _BOOL
        self._inverted = inverted
        self._by_head: np.ndarray | None = None
        if self._mask is not None:
            array = inverted if self._is_boolean else self._mask
            shape = (sizes.batch, sizes.heads, sizes.length, array.shape[-1])
            self._by_head = np.broadcast_to(array, shape)

    def prepare(self) -> None:
        """Invert a boolean mask; once a call."""
        if self._mask is not None and self._is_boolean:
            np.logical_not(self._mask, out=self._inverted)

    def prepare_image(self, image: int) -> None:
        """Find the keys that queries of this image can not see by position."""
        if not self._has_frontier:
            return
        hidden, spare = self._hidden, self._spare
        offset = self._past
        hidden.fill(False)
        if self._lengths is not None:
            offset = int(self._lengths[image]) - self._length
            hidden[:, max(0, int(self._lengths[image])) :] = True
        ahead = 0 if self._is_causal else self._right
        if self._is_causal and self._right >= 0:
            ahead = min(ahead, self._right)
        if ahead >= 0:
            last = self._query_positions + (offset + ahead)
            np.greater(self._key_positions, last, out=spare)
            np.logical_or(hidden, spare, out=hidden)
        if self._left >= 0:
            first = self._query_positions + (offset - self._left)
            np.less(self._key_positions, first, out=spare)
            np.logical_or(hidden, spare, out=hidden)

    def apply(self, scores: np.ndarray, image: int, heads: slice) -> None:
        """Mask scores [heads, length, total]."""
        if self._by_head is not None:
            mask = self._by_head[image, heads]
            known = scores[:, :, : mask.shape[-1]]
            if self._is_boolean:
                np.copyto(known, -np.inf, where=mask)
            else:
                np.add(known, mask, out=known)
            scores[:, :, mask.shape[-1] :] = -np.inf
        if self._has_frontier:
            np.copyto(scores, -np.inf, where=self._hidden)


class _Block:
    """Some key heads of one image with the query heads that share them."""

    def __init__(
        self,
        request: KernelRequest,
        outputs: Sequence[np.ndarray | None],
        sizes: _Sizes,
        image: int,
        first: int,
        queries: np.ndarray,
        keys: np.ndarray,
        values: np.ndarray,
        scores: np.ndarray,
    ) -> None:
        chosen = slice(first, min(first + sizes.block, sizes.kv_heads))
        count = chosen.stop - chosen.start
        self._starts_image = first == 0
        self._image = image
        self._heads = slice(chosen.start * sizes.repeats, chosen.stop * sizes.repeats)
        self._queries = queries[image, chosen]
        self._keys = keys[image, chosen].swapaxes(1, 2)
        self._values = values[image, chosen][:, None]
        self._scores = scores[:count]
        self._by_query = self._scores.reshape(-1, sizes.length, sizes.total)
        grouped = (count, sizes.repeats, sizes.length)
        self._probabilities = self._scores.reshape(*grouped, sizes.total)
        result = _as_heads(operands.required(outputs), sizes.heads)[image, self._heads]
        strides = result.strides
        # A head axis split in two, which keeps it a view in either layout.
        self._result = np.lib.stride_tricks.as_strided(
            result,
            (*grouped, sizes.value_size),
            (strides[0] * sizes.repeats, *strides),
        )
        self._softcap = operands.number(request, "softcap")
        self._mode = operands.integer(request, "qk_matmul_output_mode")
        wanted = operands.optional(outputs, _SCORES)
        self._wanted = None if wanted is None else wanted[image, self._heads]

    def run(self, masking: _Masking, statistic: np.ndarray, is_empty: np.ndarray) -> None:
        """Compute this block's result."""
        if self._starts_image:
            masking.prepare_image(self._image)
        np.matmul(self._queries, self._keys, out=self._scores)
        self._show(0)
        if self._softcap > 0:
            np.divide(self._scores, self._softcap, out=self._scores)
            np.tanh(self._scores, out=self._scores)
            np.multiply(self._scores, self._softcap, out=self._scores)
        self._show(1)
        masking.apply(self._by_query, self._image, self._heads)
        self._show(2)
        count = self._scores.shape[0]
        _masked_softmax(self._scores, statistic[:count], is_empty[:count])
        self._show(3)
        np.matmul(self._probabilities, self._values, out=self._result)

    def _show(self, mode: int) -> None:
        if self._wanted is not None and mode == self._mode:
            np.copyto(self._wanted, self._by_query)


def _masked_softmax(scores: np.ndarray, statistic: np.ndarray, is_empty: np.ndarray) -> None:
    """Softmax of the last axis in place; rows of -inf alone become 0."""
    np.maximum.reduce(scores, axis=-1, keepdims=True, out=statistic, initial=-np.inf)
    np.equal(statistic, -np.inf, out=is_empty)
    np.copyto(statistic, 0, where=is_empty)
    np.subtract(scores, statistic, out=scores)
    np.exp(scores, out=scores)
    np.add.reduce(scores, axis=-1, keepdims=True, out=statistic)
    np.copyto(statistic, 1, where=is_empty)
    np.divide(scores, statistic, out=scores)


def _accepts_projected(request: KernelRequest) -> bool:
    mask = request.inputs[3]
    return (
        operands.input_spec(request, 0).dtype in _FLOATS
        and (mask is None or len(mask.shape) == 2)
        and not any(operands.has_input(request, position) for position in (4, 5, 6))
        and not operands.has_output(request, 1)
        and not operands.integer(request, "do_rotary")
    )


def _inner_request(request: KernelRequest) -> KernelRequest:
    """Return the plain attention over what the projection makes."""
    data = operands.input_spec(request, 0)
    batch, length, _ = data.shape
    projected = [
        TensorSpec(data.dtype, (batch, length, width))
        for width in operands.integers(request, "widths")
    ]
    mask = TensorSpec(data.dtype, (batch, 1, 1, length)) if operands.has_input(request, 3) else None
    heads = operands.integer(request, "num_heads")
    return KernelRequest(
        operator="Attention",
        node=request.node,
        attributes={
            "q_num_heads": heads,
            "kv_num_heads": heads,
            "scale": operands.number(request, "scale"),
            "is_causal": operands.integer(request, "is_causal"),
            "softcap": 0.0,
            "left_window_size": -1,
            "right_window_size": -1,
            "qk_matmul_output_mode": 0,
        },
        inputs=(*projected, mask),
        outputs=request.outputs[:1],
    )


def _projected_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    """Return Q, K and V side by side, the mask to add, and what plain attention needs."""
    data = operands.input_spec(request, 0)
    batch, length, _ = data.shape
    inner = _inner_request(request)
    mask = inner.inputs[3]
    return (
        TensorSpec(data.dtype, (batch, length, sum(operands.integers(request, "widths")))),
        mask or TensorSpec(data.dtype, (0,)),
        *_scratch(inner),
    )


def _projected_cost(request: KernelRequest) -> float:
    data, weights = operands.input_spec(request, 0), operands.input_spec(request, 1)
    return data.element_count * weights.shape[1] + _cost(_inner_request(request))


def _bind_projected(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, weights = operands.required(inputs, 0), operands.required(inputs, 1)
    bias, mask = operands.optional(inputs, 2), operands.optional(inputs, 3)
    projected, added, *rest = scratch
    flat_data = data.reshape(-1, data.shape[-1])
    flat = projected.reshape(-1, projected.shape[-1])
    ends = np.cumsum(operands.integers(request, "widths"))[:-1]
    query, key, value = np.split(projected, ends, axis=-1)
    filtered = operands.number(request, "mask_filter_value")
    wide_mask = None if mask is None else mask[:, None, None, :]
    arrays = [query, key, value, None if mask is None else added]
    attend = _bind(_inner_request(request), arrays, outputs[:1], rest)

    def run() -> None:
        np.matmul(flat_data, weights, out=flat)
        if bias is not None:
            np.add(flat, bias, out=flat)
        if wide_mask is not None:
            np.subtract(1, wide_mask, out=added, casting="unsafe", dtype=added.dtype)
            np.multiply(added, filtered, out=added)
        attend()

    return run


def _accepts_rotary(request: KernelRequest) -> bool:
    return all(spec is not None and spec.dtype in _FLOATS for spec in request.inputs[:3])


def _rotary_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data = operands.input_spec(request, 0)
    batch, heads, length, _ = _head_shape(data, operands.integer(request, "num_heads"))
    half = operands.integer(request, "rotary_embedding_dim") // 2
    angles = (batch, length, half) if operands.has_input(request, 3) else (0,)
    return (
        TensorSpec(data.dtype, (batch, heads, length, half)),
        TensorSpec(data.dtype, angles),
        TensorSpec(data.dtype, angles),
    )


def _bind_rotary(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    heads = operands.integer(request, "num_heads")
    turned = operands.integer(request, "rotary_embedding_dim")
    data = _as_heads(operands.required(inputs, 0), heads)
    result = _as_heads(operands.required(outputs), heads)
    caches = [operands.required(inputs, 1), operands.required(inputs, 2)]
    positions = operands.optional(inputs, 3)
    product, *gathered = scratch
    cosine, sine = ((gathered if positions is not None else caches)[i][:, None] for i in range(2))
    if operands.integer(request, "interleaved"):
        halves = (slice(0, turned, 2), slice(1, turned, 2))
    else:
        halves = (slice(0, turned // 2), slice(turned // 2, turned))
    real, imaginary = (data[..., half] for half in halves)
    new_real, new_imaginary = (result[..., half] for half in halves)

    def run() -> None:
        if positions is not None:
            _check_positions(request, positions, caches[0].shape[0])
            for cache, angles in zip(caches, gathered, strict=True):
                np.take(cache, positions, axis=0, out=angles, mode="clip")
        np.multiply(real, cosine, out=new_real)
        np.multiply(imaginary, sine, out=product)
        np.subtract(new_real, product, out=new_real)
        np.multiply(real, sine, out=new_imaginary)
        np.multiply(imaginary, cosine, out=product)
        np.add(new_imaginary, product, out=new_imaginary)
        np.copyto(result[..., turned:], data[..., turned:])

    return run


def _check_positions(request: KernelRequest, positions: np.ndarray, count: int) -> None:
    if positions.size and not 0 <= positions.min() <= positions.max() < count:
        raise KernelError(
            f"position_ids reach from {positions.min()} to {positions.max()}, "
            f"but the caches have {count} rows",
            context=f"node `{request.node}` (RotaryEmbedding)",
            hint="give positions within the model's context length",
        )


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "attention",
        ("Attention",),
        _bind,
        accepts=_accepts,
        scratch=_scratch,
        cost=_cost,
        # A bfloat16 attention is specified to round at each step: left to the reference.
        widens=(FLOAT16,),
    ),
    planned_kernel(
        "attention.projected",
        ("com.microsoft.Attention",),
        _bind_projected,
        accepts=_accepts_projected,
        scratch=_projected_scratch,
        cost=_projected_cost,
    ),
    planned_kernel(
        "rotary_embedding",
        ("RotaryEmbedding",),
        _bind_rotary,
        accepts=_accepts_rotary,
        scratch=_rotary_scratch,
    ),
)
