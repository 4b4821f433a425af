"""Operators that put values where data says: Scatter and its kin.

Where updates replace, each place first learns which update is its last, by the largest index: that
is one number whatever the order. Where they are combined, one thread takes all updates that can
meet in one place, one after the other. Over the data itself only what is updated is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.faults import INDEX_OUT_OF_RANGE
from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel, unravel
from aegis_pipe.device.cuda.kernels.indexing import along, checked
from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    operand,
    required,
    result,
    text,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import ALL, BOOL, computed, dense_strides, stored
from aegis_pipe.kernel import KernelRequest

_INDEX_MAX = (1 << 31) - 1
_COMBINE = {
    "add": "a + v",
    "mul": "a * v",
    "max": "(v > a || v != v ? v : a)",
    "min": "(v < a || v != v ? v : a)",
}


def _accepts(request: KernelRequest) -> bool:
    combines = text(request, "reduction") in _COMBINE
    few = required(request, 1).element_count < _INDEX_MAX
    return few and not (combines and result(request).dtype == BOOL)


def _rows(request: KernelRequest) -> int:
    """Return how many places there are that updates can replace."""
    data = required(request)
    if request.operator == "ScatterND":
        return math.prod(data.shape[: required(request, 1).shape[-1]])
    return data.element_count


def _workspace(request: KernelRequest) -> int:
    return 0 if text(request, "reduction") in _COMBINE else max(4, 4 * _rows(request))


def _tuple_position(request: KernelRequest, index: str) -> str:
    """Return statements that set `p` to the row that a tuple of indices means."""
    shape, depth = required(request).shape, required(request, 1).shape[-1]
    strides = dense_strides(shape[:depth])
    lines = ["long long p = 0;"]
    for axis in range(depth):
        lines.append(checked(f"g{axis}", f"at[({index}) * {depth} + {axis}]", shape[axis]))
        lines.append(f"p += g{axis} * {strides[axis]}LL;")
    return " ".join(lines)


def _element_position(request: KernelRequest, index: str) -> str:
    """Return statements that set `p` to the place that the index at `index` means."""
    data, indices, axis = required(request), required(request, 1), integer(request, "axis")
    line = checked("g", f"at[{index}]", data.shape[axis])
    return f"{line} {along(indices.shape, data.shape, axis, index)}"


def _position(request: KernelRequest, index: str) -> str:
    is_nd = request.operator == "ScatterND"
    return (_tuple_position if is_nd else _element_position)(request, index)


def _update_count(request: KernelRequest) -> int:
    indices = required(request, 1)
    return (
        math.prod(indices.shape[:-1])
        if request.operator == "ScatterND"
        else (indices.element_count)
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    if text(binding.request, "reduction") in _COMBINE:
        return _bind_combining(binding)
    if _is_in_place(binding):
        return _bind_over(binding)
    request = binding.request
    data, rows = required(request), _rows(request)
    width = data.element_count // max(1, rows)
    last = ("int* last", binding.workspace)
    fill = each(binding, rows, "last[i] = -1;", [last])
    find = each(
        binding,
        _update_count(request),
        f"{_position(request, 'i')} atomicMax(last + p, (int)i);",
        [*given(binding, {"at": 1}), last],
        faults=True,
    )
    statements = f"""
  const int u = last[i / {width}];
  y[i] = u < 0 ? x[i] : updates[u * {width}LL + i % {width}];"""
    parameters = [*given(binding, {"x": 0, "updates": 2}), last, *results(binding, {"y": 0})]
    if not _update_count(request):
        statements, parameters = "y[i] = x[i];", [*given(binding, {"x": 0}), parameters[-1]]
    write = each(binding, data.element_count, statements, parameters)
    return [*fill, *find, *write]


def _is_in_place(binding: Binding) -> bool:
    return binding.inputs[0] == binding.outputs[0]


def _bind_over(binding: Binding) -> Sequence[Enqueue]:
    request, count = binding.request, _update_count(binding.request)
    width = required(request).element_count // max(1, _rows(request))
    at, last = given(binding, {"at": 1}), ("int* last", binding.workspace)

    def step(count: int, update: str, statement: str, *more: tuple[str, int]) -> list[Enqueue]:
        statements = f"{_position(request, update)} {statement}"
        return each(binding, count, statements, [*at, *more], faults=True)

    return [
        *step(count, "i", "last[p] = -1;", last),
        *step(count, "i", "atomicMax(last + p, (int)i);", last),
        *step(
            count * width,
            f"(i / {width})",
            f"if (last[p] == (int)(i / {width})) y[p * {width}LL + i % {width}] = updates[i];",
            *given(binding, {"updates": 2}),
            last,
            *results(binding, {"y": 0}),
        ),
    ]


def _bind_combining(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    data, indices = required(request), required(request, 1)
    kind, element = computed(data.dtype), stored(data.dtype)
    combine = _COMBINE[text(request, "reduction")]
    copied = (
        []
        if _is_in_place(binding)
        else each(
            binding,
            data.element_count,
            "y[i] = x[i];",
            [*given(binding, {"x": 0}), *results(binding, {"y": 0})],
        )
    )

    def step(place: str, update: str) -> str:
        return (
            f"{{ const A a = get(y[{place}]), v = get(updates[{update}]); "
            f"y[{place}] = To<{element}>::of({combine}); }}"
        )

    if request.operator == "ScatterND":
        # A thread for each place within a row: it meets no other thread.
        width = data.element_count // max(1, _rows(request))
        lines, inner = width, ""
        loop = (
            f"for (long long u = 0; u < {_update_count(request)}; ++u) {{ "
            f"{_position(request, 'u')} {step(f'p * {width}LL + i', f'u * {width}LL + i')} }}"
        )
    else:
        # A thread for each line along the axis.
        axis = integer(request, "axis")
        size, low = indices.shape[axis], math.prod(indices.shape[axis + 1 :])
        lines = indices.element_count // max(1, size)
        inner = f"i / {max(1, low)} * {size * low}LL + i % {max(1, low)}"
        loop = (
            f"for (long long t = 0; t < {size}; ++t) {{ const long long u = {inner} + t * {low}; "
            f"{_position(request, 'u')} {step('p', 'u')} }}"
        )
    parameters = [*given(binding, {"at": 1, "updates": 2}), *results(binding, {"y": 0})]
    statements = f"typedef {kind} A; {loop}"
    count = lines if _update_count(request) else 0
    return [*copied, *each(binding, count, statements, parameters, faults=True, threads=64)]


# --- MaxUnpool --------------------------------------------------------------------------------


def _accepts_unpool(request: KernelRequest) -> bool:
    counted, shape = integers(request, "counted_shape"), result(request).shape
    few = required(request).element_count < _INDEX_MAX
    return few and all(size <= room for size, room in zip(counted, shape, strict=True))


def _unpool_workspace(request: KernelRequest) -> int:
    return max(4, 4 * result(request).element_count)


def _bind_unpool(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    counted, target = integers(request, "counted_shape"), result(request)
    total = math.prod(counted)
    names = [f"c{axis}" for axis in range(len(counted))]
    strides = dense_strides(target.shape)
    # A larger result has the unpooled tensor in its corner.
    place = " + ".join(f"{n} * {s}LL" for n, s in zip(names, strides, strict=True))
    last = ("int* last", binding.workspace)
    find = f"""
  long long flat = at[i];
  if (flat < 0 || flat >= {total}LL) {{ *fault = {INDEX_OUT_OF_RANGE}; flat = 0; }}
  {unravel(counted, names, "flat")}
  atomicMax(last + ({place}), (int)i);"""
    write = f"const int u = last[i]; y[i] = u < 0 ? To<{stored(target.dtype)}>::of(0) : x[u];"
    return [
        *each(binding, target.element_count, "last[i] = -1;", [last]),
        *each(
            binding,
            required(request).element_count,
            find,
            [*given(binding, {"at": 1}), last],
            faults=True,
        ),
        *each(
            binding,
            target.element_count,
            write,
            [*given(binding, {"x": 0}), last, *results(binding, {"y": 0})],
        ),
    ]


# --- TensorScatter ----------------------------------------------------------------------------


def _bind_tensor(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    cache, update, axis = required(request), required(request, 1), integer(request, "axis")
    room, length = cache.shape[axis], update.shape[axis]
    inner = math.prod(cache.shape[axis + 1 :])
    circular = text(request, "mode") == "circular"
    in_place = _is_in_place(binding)
    per_image = math.prod((update if in_place else cache).shape[1:])
    start = "0"
    if operand(request, 2) is not None:
        start = f"(long long)first[i / {per_image}]"
    check = (
        f"start %= {room}; if (start < 0) start = -1;"
        if circular
        else f"if (start + {length} > {room}) start = -1;"
    )
    if in_place:
        over = f"""
  long long start = {start}; {check}
  if (start < 0) {{ *fault = {INDEX_OUT_OF_RANGE}; start = 0; }}
  const long long low = i % {inner}, t = i / {inner} % {length}, high = i / {inner * length};
  y[(high * {room} + (start + t) % {room}) * {inner}LL + low] = u[i];"""
        parameters = [*given(binding, {"u": 1, "first": 2}), *results(binding, {"y": 0})]
        return each(binding, update.element_count, over, parameters, faults=True)
    wrap = f"if (place < 0) place += {room};" if circular else ""
    statements = f"""
  long long start = {start}; {check}
  if (start < 0) {{ *fault = {INDEX_OUT_OF_RANGE}; start = 0; }}
  const long long low = i % {inner}, t = i / {inner} % {room}, high = i / {inner * room};
  long long place = t - start; {wrap}
  y[i] = place >= 0 && place < {length} ? u[(high * {length} + place) * {inner}LL + low] : x[i];"""
    parameters = [*given(binding, {"x": 0, "u": 1, "first": 2}), *results(binding, {"y": 0})]
    return each(binding, cache.element_count, statements, parameters, faults=True)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel(
        "scatter",
        ("ScatterElements", "ScatterND"),
        _bind,
        accepts=_accepts,
        workspace=_workspace,
        dtypes=ALL,
        in_place=((0, 0),),
    ),
    simple_kernel(
        "max_unpool",
        ("MaxUnpool",),
        _bind_unpool,
        accepts=_accepts_unpool,
        workspace=_unpool_workspace,
        dtypes=ALL,
    ),
    simple_kernel(
        "tensor_scatter", ("TensorScatter",), _bind_tensor, dtypes=ALL, in_place=((0, 0),)
    ),
)
