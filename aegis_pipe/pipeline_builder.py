"""From a manifest's pipeline sections to pipelines that can run; part of the composition root."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aegis_pipe.errors import PipelineError
from aegis_pipe.manifest.model import (
    Manifest,
    PipelineSection,
    SinkSection,
    SourceSection,
    SyntheticSource as SyntheticSection,
)
from aegis_pipe.pipeline import PipelinePlan, SinkPlan, StagePlan
from aegis_pipe.pipeline.arrivals import make_arrivals
from aegis_pipe.pipeline.parts import Sink, Source
from aegis_pipe.pipeline.sinks import SINKS
from aegis_pipe.pipeline.sources import SOURCES
from aegis_pipe.pipeline.sources.synthetic import SyntheticTensor
from aegis_pipe.pipeline.transforms import TRANSFORMS
from aegis_pipe.tensor import TensorSpec, dtype_named


class PipelineBuilder:
    """Makes the parts of a manifest's pipelines.

    `inputs` and `outputs` say by model what goes in and comes out; `write_line` takes what
    `console` sinks show.
    """

    def __init__(
        self,
        manifest: Manifest,
        inputs: Mapping[str, Mapping[str, TensorSpec]],
        outputs: Mapping[str, tuple[str, ...]],
        write_line: Callable[[str], None],
    ) -> None:
        self._manifest = manifest
        self._inputs = inputs
        self._outputs = outputs
        self._write_line = write_line

    def build(self, section: PipelineSection, *, append: bool = False) -> PipelinePlan:
        """Make a pipeline's parts; raises PipelineError with the pipeline's name.

        Files of sinks begin anew, or are added to with `append`.
        """
        try:
            source = self._source(section.source)
            stages = tuple(
                self._stage(section, index, source) for index in range(len(section.stages))
            )
            sinks = tuple(
                SinkPlan(f"{sink.kind}.{index}", self._sink(sink, append), sink.input)
                for index, sink in enumerate(section.sinks)
            )
        except PipelineError as error:
            error.context = f"pipeline `{section.name}`, {error.context}"
            raise
        return PipelinePlan(
            name=section.name,
            source=source,
            source_kind=section.source.kind,
            stages=stages,
            sinks=sinks,
            queue_capacity=section.queue_capacity,
            drop_when_full=section.full == "drop",
            priority=section.priority,
            deadline_ns=section.deadline_ns,
        )

    def _source(self, section: SourceSection) -> Source:
        """Make a source; options are its section's fields in the source's own terms."""
        options = _options(section)
        for timing in ("rate_per_s", "arrivals"):
            options.pop(timing, None)
        if "path" in options:
            options["path"] = self._manifest.resolve(options["path"])
        if "repeat" in options:
            options["passes"] = _passes(options.pop("repeat"))
        if isinstance(section, SyntheticSection):
            options = {
                "tensors": self._synthetic_tensors(section),
                "seed": section.seed,
                "count": section.count or 0,
            }
        return SOURCES[section.kind](**options)

    def _synthetic_tensors(self, section: SyntheticSection) -> dict[str, SyntheticTensor]:
        if section.like is not None:
            inputs = self._inputs[section.like]
            return {name: SyntheticTensor(spec) for name, spec in inputs.items()}
        return {
            name: SyntheticTensor(
                TensorSpec(dtype_named(tensor.dtype), tensor.shape), tensor.low, tensor.high
            )
            for name, tensor in section.outputs.items()
        }

    def _stage(self, section: PipelineSection, index: int, source: Source) -> StagePlan:
        stage = section.stages[index]
        if stage.model is not None:
            inputs = section.inputs_of(index, tuple(self._inputs[stage.model]))
            outputs = self._outputs[stage.model]
            return StagePlan(stage.name, inputs, outputs, model=stage.model)
        assert stage.transform is not None
        options = _options(stage.transform)
        if options.get("labels"):
            options["labels"] = _read_lines(self._manifest.resolve(options["labels"]))
        transform = TRANSFORMS[stage.transform.kind](**options)
        inputs = section.inputs_of(index, transform.inputs)
        return StagePlan(stage.name, inputs, transform.outputs, transform=transform)

    def _sink(self, section: SinkSection, append: bool) -> Sink:
        options = _options(section)
        options["inputs"] = options.pop("input")
        if "path" in options:
            options["path"] = written_path(self._manifest, options["path"])
        if section.kind == "console":
            options["write_line"] = self._write_line
        if section.kind == "jsonl":
            options["append"] = append
        return SINKS[section.kind](**options)


def _options(section: Any) -> dict[str, Any]:
    """Return a section's fields as keyword arguments, without what was left out."""
    fields = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    return {name: value for name, value in fields.items() if value is not None}


def _passes(repeat: bool | int) -> int:
    """Return how many times to go through a source's files; 0 for ever."""
    if repeat is True:
        return 0
    return max(1, repeat)


def arrivals_of(section: PipelineSection) -> Iterator[int]:
    """Return when a pipeline's items arrive."""
    source = section.source
    kind = getattr(source, "arrivals", "periodic")
    return make_arrivals(kind, source.rate_per_s, getattr(source, "seed", 0), section.name)


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(
            f"`{path}` can not be read: {error}", context="transform `top_k`, `labels`"
        ) from error


def written_path(manifest: Manifest, path_text: str) -> Path:
    """Return where a file is written, without the detours that only a reader would see."""
    return Path(os.path.normpath(manifest.resolve(path_text)))
