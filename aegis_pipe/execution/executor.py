"""Launches bound models. Stateless: all it needs is in the arguments, nothing stays behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from aegis_pipe.device.protocols import DeviceEvent, DeviceStream
from aegis_pipe.errors import InvalidInputError
from aegis_pipe.execution.program import BoundModel, BoundTensor, Work, WorkKind


class Executor:
    """Enqueues a bound model's work, segment by segment.

    `lanes` are the streams of the slot the model was bound to, the compute stream first.
    Nothing here blocks: completion is told by the events in `BoundModel.work`.
    """

    @staticmethod
    def launch_segment(
        bound: BoundModel,
        segment: int,
        lanes: Sequence[DeviceStream],
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
        *,
        stamped: bool,
        timed: bool = True,
    ) -> None:
        """Enqueue one segment; the first brings the inputs in, the last takes the outputs out.

        Arrays are C-contiguous, in the model's order, and untouched by others until the work is
        done. Without `timed` only those events are recorded that other lanes wait for: who wants
        to know when the work is over records `last_work(...).done` afterwards.
        """
        work = bound.work
        first = segment + 1 if segment else 0
        end = len(work) if segment == len(work) - 3 else segment + 2
        before: DeviceEvent | None = None
        for piece in work[first:end]:
            stream = lanes[piece.lane]
            for event in piece.waits:
                stream.wait(event)
            if timed and piece.begin is not before:
                stream.record(piece.begin)
            if piece.graph is not None:
                piece.graph.launch(stream, stamped=stamped)
            elif piece.kind is WorkKind.COPY_IN:
                for tensor, array in zip(bound.inputs, inputs, strict=True):
                    stream.copy_in(array, tensor.region)
            else:
                for tensor, array in zip(bound.outputs, outputs, strict=True):
                    stream.copy_out(tensor.region, array)
            if timed or piece.awaited:
                stream.record(piece.done)
            before = piece.done

    @staticmethod
    def last_work(bound: BoundModel, segment: int) -> Work:
        """Return the work whose `done` says that this segment (and its copies) is over."""
        return bound.work[-1] if segment == bound.segment_count - 1 else bound.work[segment + 1]


def check_inputs(
    model: str, tensors: Sequence[BoundTensor], given: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Return the arrays in the model's order, made contiguous and of native byte order.

    Raises InvalidInputError for a missing or unknown name, a wrong shape or a wrong dtype, and for
    what is no array; dtypes are not converted, because a silent conversion hides mistakes.
    """
    if type(given) is dict and len(given) == len(tensors):
        # Nearly always they are right, and nothing needs to be done to them.
        arrays = []
        for tensor in tensors:
            value, spec = given.get(tensor.name), tensor.spec
            # Not of another byte order: those have a dtype object of their own.
            if (
                type(value) is not np.ndarray
                or value.dtype is not spec.dtype
                or value.shape != spec.shape
                or not value.flags.c_contiguous
            ):
                break
            arrays.append(value)
        else:
            return arrays
    if not isinstance(given, Mapping):
        raise InvalidInputError(
            f"inputs are given by name, not as {type(given).__name__}",
            context=f"model `{model}`",
            hint=f"give a dict of arrays; the model's inputs are {_names(tensors)}",
        )
    unknown = given.keys() - {tensor.name for tensor in tensors}
    if unknown:
        raise InvalidInputError(
            f"the model has no input `{min(unknown, key=str)}`",
            context=f"model `{model}`",
            hint=f"its inputs are {_names(tensors)}",
        )
    return [_check_input(model, tensor, given) for tensor in tensors]


def _check_input(model: str, tensor: BoundTensor, given: Mapping[str, np.ndarray]) -> np.ndarray:
    context = f"model `{model}`, input `{tensor.name}`"
    if tensor.name not in given:
        raise InvalidInputError("no value was given", context=context, hint=f"give {tensor.spec}")
    try:
        array = np.asarray(given[tensor.name])
    except ValueError as error:
        raise InvalidInputError(
            f"this is no array: {error}", context=context, hint=f"give {tensor.spec}"
        ) from error
    is_of_dtype = array.dtype.newbyteorder("=") == tensor.spec.dtype
    if array.shape != tensor.spec.shape or not is_of_dtype:
        found = f"{array.dtype.name}[{', '.join(map(str, array.shape))}]"
        raise InvalidInputError(
            f"expected {tensor.spec}, found {found}",
            context=context,
            hint="shapes are fixed at load by `shapes` in the manifest; convert dtypes yourself",
        )
    return np.ascontiguousarray(array, tensor.spec.dtype).reshape(array.shape)


def _names(tensors: Sequence[BoundTensor]) -> str:
    return ", ".join(f"`{tensor.name}`" for tensor in tensors) or "none"
