"""Checks across keys and against the file system: what no schema can say.

They run over the file's tables after `check_schema`: every value there has the type the schema
says, but keys that are required may be missing, because all problems are told at once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_pipe.errors import ManifestError
from aegis_pipe.http_headers import header_problem
from aegis_pipe.manifest.bound_values import constant_problem
from aegis_pipe.manifest.locator import KeyPath
from aegis_pipe.manifest.model import PACKAGE_SCHEME, resolve_path
from aegis_pipe.manifest.problems import ProblemList, did_you_mean, found, listed, only
from aegis_pipe.units import parse_size

Table = dict[str, Any]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_POLICIES = ("fifo", "priority", "fairness", "edf")


@dataclass(frozen=True, slots=True)
class Checker:
    """A file's tables, where its relative paths start, and the problems so far."""

    root: Table
    directory: Path
    problems: ProblemList

    def run(self) -> None:
        """Check everything that needs no model's content."""
        self._check_unique("models", (), self.models, "model")
        self._check_unique("pipelines", (), self.pipelines, "pipeline")
        self._check_device()
        self._check_partitions()
        self._check_policy()
        for index, model in enumerate(self.models):
            self._check_model(("models", index), model)
        for index, pipeline in enumerate(self.pipelines):
            self._check_pipeline(("pipelines", index), pipeline)
        self._check_ends()
        self._check_headers()

    @property
    def models(self) -> Sequence[Table]:
        """The models' tables."""
        models: Sequence[Table] = self.root.get("models", [])
        return models

    @property
    def pipelines(self) -> Sequence[Table]:
        """The pipelines' tables."""
        pipelines: Sequence[Table] = self.root.get("pipelines", [])
        return pipelines

    # --- names ----------------------------------------------------------------------------------

    def _check_unique(
        self, key: str, parent: KeyPath, sections: Sequence[Table], noun: str
    ) -> None:
        first: dict[str, int] = {}
        for index, section in enumerate(sections):
            name = section.get("name")
            if name is None:
                continue
            earlier = first.setdefault(name, index)
            if earlier != index:
                line = self.problems.line_of((*parent, key, earlier, "name"))
                what = f"another {noun} is named {found(name)}, on line {line}"
                self.problems.add((*parent, key, index, "name"), what, "give it a name of its own")

    def check_model_name(self, path: KeyPath, name: str | None) -> None:
        """Note a reference to a model that is not there."""
        names = names_of(self.models)
        if name is not None and None not in names and name not in names:
            known = [known for known in names if known]
            otherwise = only(known, "the manifest", "model")
            self.problems.add(
                path, f"there is no model {found(name)}", did_you_mean(name, known, otherwise)
            )

    # --- device, scheduler, models --------------------------------------------------------------

    def _check_device(self) -> None:
        device = self.root.get("device", {})
        if device.get("kind", "cpu") == "cpu" and device.get("index", 0) > 0:
            what = f"there is one CPU device, index 0, found {device['index']}"
            self.problems.add(("device", "index"), what, "leave `index` out")

    def _check_partitions(self) -> None:
        streams = self.root.get("streams", {})
        shares, count = streams.get("sm", []), streams.get("count", 1)
        if shares and len(shares) != count:
            what = f"{len(shares)} numbers for {count} streams"
            self.problems.add(("streams", "sm"), what, "give one number for each stream")
        if shares and self.root.get("device", {}).get("kind", "cpu") == "cpu":
            what = "a CPU has no multiprocessors to divide among streams"
            self.problems.add(("streams", "sm"), what, 'leave `sm` out, or set `kind = "cuda"`')

    def _check_policy(self) -> None:
        policy: str = self.root.get("scheduler", {}).get("policy", "priority")
        package = policy.partition(":")[0].partition(".")[0]
        if policy not in _POLICIES and importlib.util.find_spec(package) is None:
            self.problems.add(
                ("scheduler", "policy"),
                f"no package or module `{package}` is installed",
                "install it, or put its folder on PYTHONPATH",
            )

    def _check_model(self, path: KeyPath, model: Table) -> None:
        self._check_model_budget(path, model)
        self._check_stand_in(path, model)
        self._check_streams(path, model)
        for name, value in model.get("bind", {}).items():
            what = constant_problem(value)
            if what:
                self.problems.add((*path, "bind", name), what)
        file = self.existing_file((*path, "path"), model.get("path"), "model")
        if file is not None and "sha256" in model:
            self._check_digest((*path, "sha256"), file, model["sha256"])

    def _check_model_budget(self, path: KeyPath, model: Table) -> None:
        own, whole = (
            section.get("memory_budget") for section in (model, self.root.get("device", {}))
        )
        if own and whole and parse_size(own) > parse_size(whole):
            what = f"{own} for this model is more than the {whole} of the whole device"
            self.problems.add(
                (*path, "memory_budget"), what, "raise the device's `memory_budget` or lower this"
            )

    def _check_streams(self, path: KeyPath, model: Table) -> None:
        count = self.root.get("streams", {}).get("count", 1)
        beyond = [stream for stream in model.get("streams", ()) if stream >= count]
        if beyond:
            there_is = "there is only stream 0" if count == 1 else f"streams are 0 to {count - 1}"
            self.problems.add(
                (*path, "streams"),
                f"{there_is}, found {beyond[0]}",
                "raise `streams.count`, or confine the model to streams that exist",
            )

    def _check_stand_in(self, path: KeyPath, model: Table) -> None:
        stand_in, degrades = model.get("degrade_to"), model.get("late") == "degrade"
        self.check_model_name((*path, "degrade_to"), stand_in)
        if degrades and stand_in is None:
            what = "late requests shall degrade, and there is no model to take them over"
            self.problems.add((*path, "late"), what, "name one with `degrade_to`")
        elif stand_in is not None and not degrades:
            what = "this has no effect: late requests do not degrade"
            self.problems.add(
                (*path, "degrade_to"), what, 'add `late = "degrade"`, or leave it out'
            )
        elif stand_in is not None and stand_in == model.get("name"):
            what = "a model can not take over from itself"
            self.problems.add((*path, "degrade_to"), what, "name another model")

    def _check_digest(self, path: KeyPath, file: Path, expected: str) -> None:
        with file.open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        if actual != expected:
            what = f"`{file.name}` has another digest: {actual}"
            hint = "the file is not the one that was pinned; fetch it again, or pin this digest"
            self.problems.add(path, what, hint)

    # --- files that are read --------------------------------------------------------------------

    def resolve(self, path: KeyPath, text: str | None) -> Path | None:
        """Return the path a text means; None, and a problem noted, if its package is missing."""
        if text is None:
            return None
        try:
            return resolve_path(text, self.directory)
        except ManifestError as error:
            self.problems.add(path, error.message, error.hint)
            return None

    def existing_file(self, path: KeyPath, text: str | None, noun: str) -> Path | None:
        """Return a file that can be read; None, and a problem noted, if it is not there."""
        file = self.resolve(path, text)
        if file is None or text is None:
            return None
        if file.is_dir():
            hint = f"name the {noun} file inside it"
            self.problems.add(path, f"{found(text)} is a folder, not a {noun} file", hint)
        elif not file.exists():
            self._say_missing(path, text, file)
        elif not file.is_file():
            hint = "name a file; pipes and devices are not read"
            self.problems.add(path, f"{found(text)} is no regular file", hint)
        elif not os.access(file, os.R_OK):
            self.problems.add(path, f"{found(text)} can not be read", "check its permissions")
        else:
            return file
        return None

    def _say_missing(self, path: KeyPath, text: str, file: Path, noun: str = "file") -> None:
        siblings = _names_in(file.parent)
        if siblings is None:
            hint = f"there is no folder `{os.path.dirname(text)}` either"
        else:
            hint = did_you_mean(file.name, siblings, self._where_paths_start(text))
        self.problems.add(path, f"there is no {noun} {found(text)}", hint)

    def _where_paths_start(self, text: str) -> str:
        if text.startswith(PACKAGE_SCHEME):
            return "the package is installed, but holds no such file"
        if Path(text).is_absolute():
            return ""
        return "relative paths start from the manifest's folder"

    def _folder_files(
        self, path: KeyPath, source: Table, pattern: str, suffixes: tuple[str, ...], noun: str
    ) -> list[Path]:
        """Return the files a source reads, in name order; note a problem if there are none."""
        text = source.get("path")
        place = self.resolve(path, text)
        if place is None or text is None:
            return []
        if not place.exists():
            self._say_missing(path, text, place, "file or folder")
            return []
        files = [place] if place.is_file() else sorted(place.glob(pattern))
        fitting = [file for file in files if file.suffix.lower() in suffixes]
        if not fitting:
            matching = f" that matches {found(pattern)}" if "pattern" in source else ""
            what = f"there is no {noun} in {found(text)}{matching}"
            if place.is_file():
                what = f"{found(text)} is no {noun}"
            self.problems.add(path, what, f"its name must end in {listed(suffixes, last='or')}")
        return fitting

    # --- pipelines ------------------------------------------------------------------------------

    def _check_pipeline(self, path: KeyPath, pipeline: Table) -> None:
        stages: list[Table] = pipeline.get("stages", [])
        self._check_unique("stages", path, stages, "stage of this pipeline")
        outputs = self._check_source((*path, "source"), pipeline.get("source", {}))
        edges = Edges(self, path, pipeline, outputs)
        for index, stage in enumerate(stages):
            stage_path = (*path, "stages", index)
            if stage.get("name") == "source":
                what = "a stage can not be named `source`: that name is the pipeline's source"
                self.problems.add((*stage_path, "name"), what, "give it another name")
            self.check_model_name((*stage_path, "model"), stage.get("model"))
            self._check_transform(stage_path, stage)
            edges.check_stage(index, stage)
        for index, sink in enumerate(pipeline.get("sinks", [])):
            edges.check_sink((*path, "sinks", index, "input"), sink.get("input", []))

    def _check_source(self, path: KeyPath, source: Table) -> Sequence[str] | None:
        """Check a source; return the names of its outputs, None if they are not known."""
        match source.get("kind"):
            case "images":
                pattern = source.get("pattern", "*")
                self._folder_files((*path, "path"), source, pattern, IMAGE_SUFFIXES, "image")
                return image_outputs(source)
            case "npz":
                files = self._folder_files(
                    (*path, "path"), source, "*.npz", (".npz",), "`.npz` file"
                )
                return self._arrays_in((*path, "path"), files[0]) if files else None
            case "synthetic":
                return self._check_synthetic(path, source)
        return None

    def _arrays_in(self, path: KeyPath, file: Path) -> Sequence[str] | None:
        try:
            with zipfile.ZipFile(file) as archive:
                return [name.removesuffix(".npy") for name in archive.namelist()]
        except (OSError, zipfile.BadZipFile):
            self.problems.add(path, f"`{file.name}` is not an `.npz` archive")
            return None

    def _check_synthetic(self, path: KeyPath, source: Table) -> Sequence[str] | None:
        self.check_model_name((*path, "like"), source.get("like"))
        self._check_until(path, source)
        if source.get("arrivals") == "poisson" and "rate" not in source:
            what = "arrivals at random need a mean rate"
            self.problems.add((*path, "arrivals"), what, 'add `rate`, such as "30/s"')
        for name, tensor in source.get("outputs", {}).items():
            low, high = tensor.get("low", 0.0), tensor.get("high", 1.0)
            if low >= high:
                what = f"`low` must be below `high`, found {low} and {high}"
                key = "low" if "low" in tensor else "high"
                self.problems.add((*path, "outputs", name, key), what)
        return list(source["outputs"]) if "outputs" in source else None

    def _check_until(self, path: KeyPath, source: Table) -> None:
        until = source.get("until")
        others = [p for p in self.pipelines if p.get("source") is not source]
        names = [name for name in names_of(others) if name is not None]
        if until is not None and until not in names:
            hint = did_you_mean(until, names, f"pipelines are {listed(names)}" if names else "")
            self.problems.add((*path, "until"), f"there is no other pipeline {found(until)}", hint)

    def _check_ends(self) -> None:
        """Refuse pipelines that last as long as each other, which is for ever."""
        names = names_of(self.pipelines)
        waits = {
            name: source["until"]
            for name, pipeline in zip(names, self.pipelines, strict=True)
            if "until" in (source := pipeline.get("source", {})) and "count" not in source
        }
        while waits:
            ring = [next(iter(waits))]
            while (following := waits.pop(ring[-1], None)) is not None and following not in ring:
                ring.append(following)
            if following in ring[1:]:
                ring = ring[ring.index(following) :]
            if following == ring[0] and len(ring) > 1:
                path = ("pipelines", names.index(ring[0]), "source", "until")
                way = " -> ".join(f"`{name}`" for name in (*ring, ring[0]))
                what = f"these pipelines wait for each other's end, which never comes: {way}"
                hint = "give one of them an end of its own, such as `count`, instead of `until`"
                self.problems.add(path, what, hint)

    def _check_headers(self) -> None:
        otlp = self.root.get("telemetry", {}).get("otlp", {})
        for name, value in otlp.get("headers", {}).items():
            what = header_problem(name, value)
            if what:
                path = ("telemetry", "otlp", "headers", name)
                self.problems.add(path, what, "correct or remove this header", at_key=True)

    def _check_transform(self, path: KeyPath, stage: Table) -> None:
        parameters = stage.get("with", {})
        if "with" in stage and "transform" not in stage and "model" in stage:
            hint = "a model has none; parameters belong to a transform"
            self.problems.add((*path, "with"), "`with` without a `transform`", hint, at_key=True)
        if stage.get("transform") == "image_to_tensor":
            channels = parameters.get("channels", "RGB")
            for key in ("mean", "scale"):
                self._check_per_channel((*path, "with", key), parameters.get(key), channels)
        if stage.get("transform") == "top_k":
            self.existing_file((*path, "with", "labels"), parameters.get("labels"), "text")

    def _check_per_channel(self, path: KeyPath, values: object, channels: str) -> None:
        count = 1 if channels == "GRAY" else 3
        if isinstance(values, list) and len(values) not in {1, count}:
            what = (
                f"{channels} images have {_counted(count, 'channel')}, found {len(values)} values"
            )
            self.problems.add(path, what, f"give one number, or a list of {count}")


@dataclass(frozen=True, slots=True)
class Edges:
    """Who reads what in one pipeline."""

    checker: Checker
    path: KeyPath
    pipeline: Table
    source_outputs: Sequence[str] | None
    """None if they are not known."""

    @property
    def stages(self) -> Sequence[Table]:
        """The pipeline's stages."""
        stages: Sequence[Table] = self.pipeline.get("stages", [])
        return stages

    def check_stage(self, index: int, stage: Table) -> None:
        """Check what a stage reads."""
        path = (*self.path, "stages", index)
        inputs = stage.get("inputs", {})
        for name, edge in inputs.items():
            if "transform" in stage and "model" not in stage and name != "input":
                what = f"a transform has one input, `input`, and no {found(name)}"
                hint = f'write `inputs = {{ input = "{edge}" }}`'
                self.checker.problems.add((*path, "inputs", name), what, hint, at_key=True)
            self._check_edge((*path, "inputs", name), edge, reader=index)
        has_problem = self.checker.problems.has_within((*path, "inputs"))
        if not inputs and "transform" in stage and not has_problem:
            self._check_default_input(path, index)

    def check_sink(self, path: KeyPath, edges: str | list[str]) -> None:
        """Check what a sink writes."""
        if isinstance(edges, str):
            self._check_edge(path, edges, reader=len(self.stages))
            return
        for position, edge in enumerate(edges):
            self._check_edge((*path, position), edge, reader=len(self.stages))

    def _check_default_input(self, path: KeyPath, index: int) -> None:
        """Refuse a transform that leaves open which of several outputs it reads."""
        if index == 0:
            known = self.source_outputs is not None and len(self.source_outputs) == 1
            before = "source"
            # Of an image source, the picture is meant.
            is_known = known or self.pipeline.get("source", {}).get("kind", "images") == "images"
        else:
            before = self.stages[index - 1].get("name", "stage")
            is_known = "model" not in self.stages[index - 1]
        if not is_known:
            what = f"it does not say which output of `{before}` it reads"
            hint = f'add `inputs = {{ input = "{before}.<output>" }}`'
            self.checker.problems.add((*path, "inputs"), what, hint)

    def _check_edge(self, path: KeyPath, edge: str, *, reader: int) -> None:
        """Check that an edge begins at an output that is there before its reader runs."""
        feeder, _, output = edge.partition(".")
        names = names_of(self.stages)
        if feeder == "source":
            self._check_output(path, edge, output, self.source_outputs, "the source")
        elif feeder in names[:reader]:
            position = names.index(feeder)
            known = self.outputs_of(self.stages[position])
            self._check_output(path, edge, output, known, f"stage `{feeder}`")
        elif feeder in names:
            self._say_later(path, names, names.index(feeder), reader)
        elif None not in names:
            earlier = [name for name in names[:reader] if name]
            hint = did_you_mean(
                feeder, [*earlier, "source"], f"it can read {listed([*earlier, 'source'])}"
            )
            self.checker.problems.add(path, f"there is no stage {found(feeder)}", hint)

    def outputs_of(self, stage: Table) -> Sequence[str] | None:
        """Return the names of a stage's outputs; None if only its model knows them."""
        match stage.get("transform"):
            case None:
                return None
            case "top_k":
                labels = ("labels",) if "labels" in stage.get("with", {}) else ()
                return ("values", "indices", *labels)
            case _:
                return ("output",)

    def _check_output(
        self, path: KeyPath, edge: str, output: str, known: Sequence[str] | None, whose: str
    ) -> None:
        if known is not None and output not in known:
            what = f"{whose} has no output {found(output)}"
            hint = did_you_mean(output, known, only(known, "it", "output"))
            self.checker.problems.add(path, what, hint)

    def _say_later(self, path: KeyPath, names: Sequence[Any], feeder: int, reader: int) -> None:
        cycle = self._cycle(names, feeder, reader)
        if feeder == reader:
            what = f"stage `{names[reader]}` reads its own output"
            self.checker.problems.add(path, what, "let it read from an earlier stage")
        elif cycle:
            what = f"the stages wait for each other in a circle: {' -> '.join(cycle)}"
            self.checker.problems.add(path, what, "let one of them read from an earlier stage")
        else:
            what = f"stage `{names[feeder]}` runs later than `{names[reader]}`, which reads it"
            self.checker.problems.add(path, what, f"move `{names[feeder]}` up in the manifest")

    def _cycle(self, names: Sequence[Any], start: int, goal: int) -> list[str]:
        """Return the way data takes from `goal` to `start` and back, if there is one."""
        ways: dict[int, list[int]] = {start: [start]}
        pending = [start]
        while pending and goal not in ways:
            current = pending.pop(0)
            for edge in self.stages[current].get("inputs", {}).values():
                feeder = edge.partition(".")[0]
                if feeder in names and names.index(feeder) not in ways:
                    ways[names.index(feeder)] = [*ways[current], names.index(feeder)]
                    pending.append(names.index(feeder))
        if goal not in ways:
            return []
        return [names[index] for index in (*reversed(ways[goal]), goal)]


def names_of(sections: Sequence[Table]) -> list[str | None]:
    """Return the sections' names in order; None where one is missing."""
    return [section.get("name") for section in sections]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _names_in(folder: Path) -> list[str] | None:
    """Return what a folder holds; None if it is no folder that can be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return None


def image_outputs(source: Table) -> tuple[str, ...]:
    """Return what an image source puts out."""
    label = ("label",) if source.get("labels", "none") == "prefix" else ()
    return ("image", "name", *label)
