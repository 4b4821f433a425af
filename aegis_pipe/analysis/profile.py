"""Measured execution times of a manifest's models, and what they were measured on."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aegis_pipe.analysis.in_place import Hold
from aegis_pipe.analysis.profile_check import check_profile
from aegis_pipe.analysis.quantiles import QuantileBound, bound, wider
from aegis_pipe.errors import PermanentError
from aegis_pipe.execution.capture import cut_into_segments

FORMAT = 4
GRID_POINTS = 512
"""Points that a distribution is kept as: enough for p99.9 of a simulated run."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a profile depends on; it is void if any of this is different."""

    models: Mapping[str, str]
    """SHA-256 of each model's file, with its precision and fixed shapes."""
    device: str
    libraries: Mapping[str, str]
    """Driver, libraries and kernels with their versions."""
    stream_count: int
    threads: int
    max_block_ns: int
    version: str = ""
    """Of AegisPipe: another one may run other kernels."""
    real_time: int | None = None
    """Priority of the threads, if they go before other processes."""

    def differences(self, present: Fingerprint) -> tuple[str, ...]:
        """Return a line for each thing that is not now as it was when this was measured."""
        lines = []
        for name in ("version", "device", "stream_count", "threads", "max_block_ns", "real_time"):
            was, now = getattr(self, name), getattr(present, name)
            if was != now:
                lines.append(f"{name.removesuffix('_ns').replace('_', ' ')}: {was}, now {now}")
        for name in ("models", "libraries"):
            was, now = getattr(self, name), getattr(present, name)
            lines += [
                f"{name.removesuffix('s')} `{key}`: {was.get(key, 'not there')}, "
                f"now {now.get(key, 'not there')}"
                for key in sorted({*was, *now})
                if was.get(key) != now.get(key)
            ]
        return tuple(lines)


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """How long one model's requests hold a stream when nothing else runs; bounds also in place."""

    model: str
    boundaries: tuple[int, ...]
    """Kernel calls at which segments begin, but for the first."""
    kernels_ns: tuple[int, ...]
    """Median of each kernel call; what a finer cut is reckoned from."""
    segments: tuple[QuantileBound, ...]
    total: QuantileBound
    """Of all segments together."""
    segment_medians_ns: tuple[int, ...]
    totals_ns: tuple[int, ...]
    """The distribution of the total, request upon request: values at evenly spaced ranks,
    ascending."""
    rested_ns: tuple[int, ...]
    """The same after a short pause and another model, when caches and threads are cold."""
    idle_ns: tuple[int, ...]
    """The same after a long pause; bounds cover all three, and times in place."""
    wakes_ns: tuple[int, ...]
    """The same of the time from submission until the scheduler acts on it, when idle."""
    wake: QuantileBound


@dataclass(frozen=True, slots=True)
class PairProfile:
    """The same for one model while every other stream is busy with another (or itself)."""

    model: str
    beside: str
    segments: tuple[QuantileBound, ...]
    total: QuantileBound
    total_median_ns: int
    totals_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything `aegis-pipe profile` measures."""

    fingerprint: Fingerprint
    quantile: float
    """The share of executions that bounds are meant to cover; see each bound for what it does."""
    confidence: float
    models: Mapping[str, ModelProfile]
    pairs: tuple[PairProfile, ...] = ()
    host_ns: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Per `pipeline/stage`: times of its source or transform, as `totals_ns`."""
    in_place: tuple[Hold, ...] = ()
    """Requests of the manifest's own pipelines, in the order of their starts."""

    def segments_ns(self, model: str) -> tuple[int, ...]:
        """Return the longest times of a model's segments, alone and beside every other."""
        rows = [self.models[model].segments]
        rows += [pair.segments for pair in self.pairs if pair.model == model]
        return tuple(max(each.bound_ns for each in column) for column in zip(*rows, strict=True))

    def total_ns(self, model: str) -> int:
        """Return the longest time of all a model's segments, alone and beside every other."""
        totals = [self.models[model].total]
        totals += [pair.total for pair in self.pairs if pair.model == model]
        return max(total.bound_ns for total in totals)

    def medians_ns(self, model: str, max_block_ns: int) -> tuple[int, ...]:
        """Return the usual times of a model's segments, were it cut at another length."""
        mine = self.models[model]
        if max_block_ns == self.fingerprint.max_block_ns or not sum(mine.kernels_ns):
            return mine.segment_medians_ns
        edges = [0, *cut_into_segments(mine.kernels_ns, max_block_ns), len(mine.kernels_ns)]
        overhead_ns = max(0, sum(mine.segment_medians_ns) - sum(mine.kernels_ns))
        each_ns = overhead_ns // len(mine.segment_medians_ns)
        return tuple(
            sum(mine.kernels_ns[first:end]) + each_ns for first, end in itertools.pairwise(edges)
        )

    def recut(self, model: str, longest_ns: int) -> tuple[int, ...]:
        """Return the times of a model's segments if none were longer than `longest_ns`.

        A kernel is not cut. A segment's bound is shared out among its kernels by their medians,
        and every cut costs what the shortest segment has on top of its kernels.
        """
        mine = self.models[model]
        bounds_ns = self.segments_ns(model)
        edges = [0, *mine.boundaries, len(mine.kernels_ns)]
        overhead_ns = min(
            max(0, median_ns - sum(mine.kernels_ns[first:end]))
            for median_ns, (first, end) in zip(
                mine.segment_medians_ns, itertools.pairwise(edges), strict=True
            )
        )
        pieces: list[int] = []
        for bound_ns, (first, end) in zip(bounds_ns, itertools.pairwise(edges), strict=True):
            pieces += _cut(mine.kernels_ns[first:end], bound_ns, longest_ns, overhead_ns)
        return tuple(pieces)


def _cut(kernels_ns: Sequence[int], bound_ns: int, longest_ns: int, overhead_ns: int) -> list[int]:
    if bound_ns <= longest_ns or len(kernels_ns) < 2 or not sum(kernels_ns):
        return [bound_ns]
    scale = max(bound_ns - overhead_ns, 0) / sum(kernels_ns)
    pieces = [0.0]
    for kernel_ns in kernels_ns:
        if pieces[-1] and pieces[-1] + kernel_ns * scale + overhead_ns > longest_ns:
            pieces.append(0.0)
        pieces[-1] += kernel_ns * scale
    return [round(piece) + overhead_ns for piece in pieces]


def grid(durations_ns: Sequence[int], points: int = GRID_POINTS) -> tuple[int, ...]:
    """Return a distribution as its values at evenly spaced ranks, the largest among them."""
    ordered = sorted(durations_ns)
    if len(ordered) <= points:
        return tuple(ordered)
    return tuple(ordered[(rank + 1) * len(ordered) // points - 1] for rank in range(points))


def median(durations_ns: Sequence[int]) -> int:
    """Return the middle sample."""
    return sorted(durations_ns)[len(durations_ns) // 2]


def model_profile(
    model: str,
    rows_ns: Sequence[Sequence[int]],
    rested_rows_ns: Sequence[Sequence[int]],
    idle_rows_ns: Sequence[Sequence[int]],
    wakes_ns: Sequence[int],
    boundaries: Sequence[int],
    kernels_ns: Sequence[int],
    quantile: float,
    confidence: float,
) -> ModelProfile:
    """Summarise measured requests; a row has one request's time per segment."""
    columns = list(zip(*rows_ns, strict=True))
    cold_columns = zip(*rested_rows_ns, *idle_rows_ns, strict=True)
    totals, rested, idle = (
        [sum(row) for row in rows] for rows in (rows_ns, rested_rows_ns, idle_rows_ns)
    )

    def bound_of(one: Sequence[int], other: Sequence[int]) -> QuantileBound:
        return wider(bound(one, quantile, confidence), bound(other, quantile, confidence))

    return ModelProfile(
        model,
        tuple(boundaries),
        tuple(kernels_ns),
        tuple(itertools.starmap(bound_of, zip(columns, cold_columns, strict=True))),
        bound_of(totals, [*rested, *idle]),
        tuple(median(column) for column in columns),
        grid(totals),
        grid(rested),
        grid(idle),
        grid(wakes_ns),
        bound(wakes_ns, quantile, confidence),
    )


def covering(profile: ModelProfile, rows_ns: Sequence[Sequence[int]]) -> ModelProfile:
    """Return a profile whose bounds are no less than those of further requests' times.

    What bounds claim stays as it was measured with nothing else running: greater bounds hold, too.
    """
    if not rows_ns:
        return profile

    def raised(known: QuantileBound, times_ns: Sequence[int]) -> QuantileBound:
        seen = bound(times_ns, known.quantile, known.confidence)
        return known._replace(bound_ns=max(known.bound_ns, seen.bound_ns))

    columns = zip(*rows_ns, strict=True)
    return dataclasses.replace(
        profile,
        segments=tuple(itertools.starmap(raised, zip(profile.segments, columns, strict=True))),
        total=raised(profile.total, [sum(row) for row in rows_ns]),
    )


def pair_profile(
    model: str,
    beside: str,
    rows_ns: Sequence[Sequence[int]],
    quantile: float,
    confidence: float,
) -> PairProfile:
    """Summarise requests measured beside another model."""
    totals = [sum(row) for row in rows_ns]
    columns = zip(*rows_ns, strict=True)
    bounds = tuple(bound(column, quantile, confidence) for column in columns)
    total = bound(totals, quantile, confidence)
    return PairProfile(model, beside, bounds, total, median(totals), grid(totals))


# --- the file -----------------------------------------------------------------------------------


def profile_text(profile: Profile) -> str:
    """Write a profile as JSON; `read_profile` gives back the same."""
    return json.dumps({"format": FORMAT, **dataclasses.asdict(profile)}, indent=1) + "\n"


def read_profile(text: str, where: str) -> Profile:
    """Read a profile; raises PermanentError if it is none of this version's."""
    try:
        values = json.loads(text)
        if values.pop("format") != FORMAT:
            raise ValueError("of another version")
        check_profile(values)
        return _profile(values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = str(error) if isinstance(error, ValueError) else "it has another form"
        what = f"it lacks {error}" if isinstance(error, KeyError) else what
        raise PermanentError(
            f"this is not a profile that can be read: {what}",
            context=where,
            hint="measure it anew with `aegis-pipe profile`",
        ) from error


def _profile(values: dict[str, Any]) -> Profile:
    return Profile(
        Fingerprint(**values["fingerprint"]),
        values["quantile"],
        values["confidence"],
        {name: _model(each) for name, each in values["models"].items()},
        tuple(
            PairProfile(
                **{
                    **each,
                    "segments": _bounds(each["segments"]),
                    "total": QuantileBound(*each["total"]),
                    "totals_ns": tuple(each["totals_ns"]),
                }
            )
            for each in values["pairs"]
        ),
        {name: tuple(each) for name, each in values["host_ns"].items()},
        tuple(Hold(*each) for each in values["in_place"]),
    )


def _model(values: dict[str, Any]) -> ModelProfile:
    lists = (
        "boundaries", "kernels_ns", "segment_medians_ns", "totals_ns", "rested_ns", "idle_ns",
        "wakes_ns",
    )  # fmt: skip
    return ModelProfile(
        **{
            **values,
            **{name: tuple(values[name]) for name in lists},
            "segments": _bounds(values["segments"]),
            "total": QuantileBound(*values["total"]),
            "wake": QuantileBound(*values["wake"]),
        }
    )


def _bounds(rows: Sequence[Sequence[Any]]) -> tuple[QuantileBound, ...]:
    return tuple(QuantileBound(*row) for row in rows)
