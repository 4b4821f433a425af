"""The fixed pool of streams, and who holds each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aegis_pipe.errors import PermanentError
from aegis_pipe.scheduling.policy import NO_MODELS
from aegis_pipe.scheduling.request import ExecutionRequest


class StreamPool:
    """`count` streams, numbered from 0; taking one always gives the lowest that is free.

    `allowed` confines models to some of the streams; a model that is not named may use all.
    Raises PermanentError for an empty pool, and for a model left without a stream.
    """

    def __init__(self, count: int, *, allowed: Mapping[str, Iterable[int]] | None = None) -> None:
        if count < 1:
            raise PermanentError(
                f"{count} streams can not run anything",
                context="streams.count",
                hint="ask for at least one stream",
            )
        # Sets of streams are bit masks: the lowest free one is a single expression.
        self._all = (1 << count) - 1
        self.free = self._all
        """Those nobody holds, as a bit mask."""
        masks = {model: _mask(model, streams, count) for model, streams in (allowed or {}).items()}
        # One that may use all is not confined, whoever named it.
        self._allowed = {model: mask for model, mask in masks.items() if mask != self._all}
        self._barred = tuple(
            frozenset(model for model, mask in self._allowed.items() if not mask >> stream & 1)
            for stream in range(count)
        )
        self._holders: list[ExecutionRequest | None] = [None] * count

    @property
    def count(self) -> int:
        """Number of streams."""
        return len(self._holders)

    @property
    def confines(self) -> bool:
        """Return whether there are models that may not use all streams."""
        return bool(self._allowed)

    def streams_of(self, model: str) -> int:
        """Return the streams that the model may use, as a bit mask."""
        return self._allowed.get(model, self._all)

    def has_free_for(self, model: str) -> bool:
        """Return whether a request of this model could start now."""
        return self.free & self.streams_of(model) != 0

    def models_without_free(self) -> frozenset[str]:
        """Confined models all of whose streams are held."""
        if not self._allowed:
            return NO_MODELS
        free = self.free
        return frozenset([model for model, mask in self._allowed.items() if not mask & free])

    def models_barred_from(self, stream: int) -> frozenset[str]:
        """Models that may not use this stream."""
        return self._barred[stream]

    def acquire(self, request: ExecutionRequest) -> int:
        """Give the request the lowest free stream its model may use; there must be one."""
        usable = self.free
        if self._allowed:
            usable &= self.streams_of(request.model)
        assert usable, f"no free stream for `{request.model}`"
        stream = (usable & -usable).bit_length() - 1
        self.free &= ~(1 << stream)
        self._holders[stream] = request
        return stream

    def hand_over(self, stream: int, request: ExecutionRequest) -> None:
        """Give a held stream to another request."""
        assert self._holders[stream] is not None, f"stream {stream} is free"
        self._holders[stream] = request

    def release(self, stream: int) -> None:
        """Free a held stream."""
        assert self._holders[stream] is not None, f"stream {stream} is free already"
        self._holders[stream] = None
        self.free |= 1 << stream

    def holder(self, stream: int) -> ExecutionRequest | None:
        """Return the request that holds a stream."""
        return self._holders[stream]

    def holders_for(self, model: str) -> tuple[int, ...]:
        """Return the identifiers of who holds the streams this model may use, by stream."""
        usable = self.streams_of(model)
        return tuple(
            holder.request_id
            for stream, holder in enumerate(self._holders)
            if holder is not None and usable >> stream & 1
        )

    def __repr__(self) -> str:
        held = (str(holder.request_id) if holder else "-" for holder in self._holders)
        return f"<StreamPool: {self.free.bit_count()} of {self.count} free [{' '.join(held)}]>"


def _mask(model: str, streams: Iterable[int], count: int) -> int:
    wanted = sorted(set(streams))
    if not wanted or wanted[0] < 0 or wanted[-1] >= count:
        raise PermanentError(
            f"model `{model}` is confined to streams {wanted}, and there are 0 to {count - 1}",
            context="streams",
            hint="name at least one existing stream for it, or leave it unconfined",
        )
    return sum(1 << stream for stream in wanted)
