"""Checks of the manifest against the content of its model files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_pipe.errors import AegisError
from aegis_pipe.manifest.bound_values import bound_kinds, constant_shape, leaves
from aegis_pipe.manifest.checks import Checker, Edges, image_outputs, names_of
from aegis_pipe.manifest.locator import KeyPath
from aegis_pipe.manifest.model import ModelFacts, TensorFacts
from aegis_pipe.manifest.problems import ProblemList, did_you_mean, found, key_text, only
from aegis_pipe.tensor import kind_of, written_value
from aegis_pipe.units import format_size, parse_size

Table = dict[str, Any]
Shape = Sequence[int | str | None]

_MAX_LISTED_OPERATORS = 5
_RAISE_BUDGET = "raise it: weights and activations need room; `aegis-pipe plan` tells how much"


def check_models(checker: Checker, inspect_model: Callable[[Path], ModelFacts]) -> None:
    """Inspect every model file that is there, and check all that refers to it."""
    facts: dict[str, ModelFacts] = {}
    files: dict[str, Path] = {}
    for index, model in enumerate(checker.models):
        path: KeyPath = ("models", index)
        file = _file_of(checker, path, model)
        if file is None:
            continue
        try:
            inspected = inspect_model(file)
        except AegisError as error:
            checker.problems.add((*path, "path"), error.message, error.hint)
            continue
        ModelCheck(checker.problems, path, model, inspected).run()
        if "name" in model:
            facts.setdefault(model["name"], inspected)
            files.setdefault(model["name"], file)
    _check_device_budget(checker, facts, files)
    for index, pipeline in enumerate(checker.pipelines):
        PipelineCheck(checker, ("pipelines", index), pipeline, facts).run()


def _file_of(checker: Checker, path: KeyPath, model: Table) -> Path | None:
    if "path" not in model or checker.problems.has((*path, "path")):
        return None
    return checker.resolve((*path, "path"), model["path"])


def _check_device_budget(
    checker: Checker, facts: Mapping[str, ModelFacts], files: Mapping[str, Path]
) -> None:
    """Refuse a device budget below the weights; a file used by two models counts once."""
    budget = checker.root.get("device", {}).get("memory_budget")
    weights = {files[name]: (facts[name].weight_bytes, name) for name in reversed(list(facts))}
    total = sum(size for size, _ in weights.values())
    if budget is None or total <= parse_size(budget):
        return
    largest = sorted(weights.values(), key=lambda entry: (-entry[0], entry[1]))[:3]
    parts = " + ".join(f"`{name}` {_about(size)}" for size, name in largest)
    rest = f" + {len(weights) - 3} more" if len(weights) > 3 else ""
    checker.problems.add(
        ("device", "memory_budget"),
        f"{budget} does not hold the weights alone, {_about(total)}: {parts}{rest}",
        _RAISE_BUDGET,
    )


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """One model's section against its file."""

    problems: ProblemList
    path: KeyPath
    model: Table
    facts: ModelFacts

    def run(self) -> None:
        """Note everything that does not fit."""
        for name, shape in self.model.get("shapes", {}).items():
            self._check_shape(name, shape)
        for name, value in self.model.get("bind", {}).items():
            self._check_bind(name, value)
        for name, output in self.model.get("state", {}).items():
            self._check_state(name, output)
        self._check_open_inputs()
        self._check_operators()
        self._check_budget()

    def _check_known(self, key: str, name: str) -> bool:
        if name in self.facts.inputs:
            return True
        hint = did_you_mean(name, self.facts.inputs, only(self.facts.inputs, "it", "input"))
        what = f"the model has no input {found(name)}"
        self.problems.add((*self.path, key, name), what, hint, at_key=True)
        return False

    def _check_shape(self, name: str, shape: Sequence[int]) -> None:
        if self._check_known("shapes", name):
            stated = self.facts.inputs[name].shape
            if not fits(shape, stated):
                what = f"{shape_text(shape)} contradicts the model's {shape_text(stated)}"
                self.problems.add((*self.path, "shapes", name), what, _shape_hint(shape, stated))

    def _check_bind(self, name: str, value: object) -> None:
        path = (*self.path, "bind", name)
        if self.problems.has(path) or not self._check_known("bind", name):
            return
        tensor = self.facts.inputs[name]
        shape = constant_shape(value)
        needed = f"{tensor.dtype}{shape_text(tensor.shape)}"
        example = written_value(tensor.dtype, tensor.shape)
        hint = f"write `{key_text(name)} = {example}` with your values"
        # A single number fills any shape that is known.
        fills = not shape and all(isinstance(size, int) for size in tensor.shape)
        if not fills and not fits(shape, tensor.shape):
            what = f"the input is {needed}, found a value of shape {shape_text(shape)}"
            self.problems.add(path, what, hint)
        expected = kind_of(tensor.dtype)
        kinds = bound_kinds(value)
        if (expected == "bool") != kinds[bool] or (expected == "integer" and kinds[float]):
            what = f"the input is {needed}, found {found(_first_wrong(value, expected))}"
            self.problems.add(path, what, hint)
        if name in self.model.get("shapes", {}) and shape:
            what = f"`{name}` is bound to a value, which has its own shape"
            self.problems.add((*self.path, "shapes", name), what, "leave it out of `shapes`")

    def _check_state(self, name: str, output: str) -> None:
        path = (*self.path, "state", name)
        if not self._check_known("state", name):
            return
        if name in self.model.get("bind", {}):
            what = f"`{name}` is bound to a constant"
            self.problems.add(path, what, "leave it out of `bind`, or here", at_key=True)
        if output not in self.facts.outputs:
            hint = did_you_mean(
                output, self.facts.outputs, only(self.facts.outputs, "it", "output")
            )
            self.problems.add(path, f"the model has no output {found(output)}", hint)
        if "batching" in self.model:
            what = "requests with state can not run together"
            self.problems.add(path, what, "leave out `batching`, or `state`", at_key=True)
        if self.model.get("concurrency", 1) != 1:
            what = "requests with state run one after the other"
            hint = "leave out `concurrency`, or write 1"
            self.problems.add((*self.path, "concurrency"), what, hint)

    def _check_open_inputs(self) -> None:
        shapes = self.model.get("shapes", {})
        settled = {*shapes, *self.model.get("bind", {})}
        # A shape also settles the symbols that other inputs share with it.
        symbols = {
            dimension
            for name, tensor in self.facts.inputs.items()
            for dimension in tensor.shape
            if name in shapes and isinstance(dimension, str)
        }
        for name, tensor in self.facts.inputs.items():
            is_open = not all(isinstance(d, int) or d in symbols for d in tensor.shape)
            if is_open and name not in settled:
                example = [d if isinstance(d, int) else 1 for d in tensor.shape]
                what = f"the model leaves input {found(name)} open: {shape_text(tensor.shape)}"
                hint = f"fix it, for example `shapes = {{ {key_text(name)} = {example} }}`"
                self.problems.add((*self.path, "shapes", name), what, hint)

    def _check_operators(self) -> None:
        """Tell about each operator once, with the first node that uses it."""
        first: dict[str, tuple[str, str]] = {}
        for node, operator, alternative in self.facts.unknown_operators:
            first.setdefault(operator, (node, alternative))
        if not first:
            return
        limit = _MAX_LISTED_OPERATORS
        shown = [f"`{op}` (node {found(node)})" for op, (node, _) in first.items()]
        more = len(shown) - limit
        tail = f" and {more} more" if more > 0 else ""
        noun = "an operator" if len(shown) == 1 else "operators"
        what = f"the model has {noun} that can not be run: {', '.join(shown[:limit])}{tail}"
        nearest = [f"`{alt}` for `{op}`" for op, (_, alt) in first.items() if alt]
        hint = f"export it with {', '.join(nearest)}" if nearest else "export it without"
        self.problems.add((*self.path, "path"), what, hint)

    def _check_budget(self) -> None:
        budget = self.model.get("memory_budget")
        if budget is not None and self.facts.weight_bytes > parse_size(budget):
            what = f"{budget} does not hold the weights alone, {_about(self.facts.weight_bytes)}"
            self.problems.add((*self.path, "memory_budget"), what, _RAISE_BUDGET)


@dataclass(frozen=True, slots=True)
class PipelineCheck:
    """One pipeline's edges against the models it uses."""

    checker: Checker
    path: KeyPath
    pipeline: Table
    facts: Mapping[str, ModelFacts]

    def run(self) -> None:
        """Note edges to inputs and outputs that the models do not have."""
        edges = Edges(self.checker, self.path, self.pipeline, None)
        for index, stage in enumerate(edges.stages):
            if stage.get("model") in self.facts:
                self._check_inputs((*self.path, "stages", index), index, stage)
            for name, edge in stage.get("inputs", {}).items():
                self._check_output((*self.path, "stages", index, "inputs", name), edge)
        for index, sink in enumerate(self.pipeline.get("sinks", [])):
            path = (*self.path, "sinks", index, "input")
            given = sink.get("input", [])
            if isinstance(given, str):
                self._check_output(path, given)
                continue
            for position, edge in enumerate(given):
                self._check_output((*path, position), edge)

    def _check_inputs(self, path: KeyPath, index: int, stage: Table) -> None:
        model = self._section(stage["model"])
        given = {*model.get("bind", {}), *model.get("state", {})}
        needed = [n for n in self.facts[stage["model"]].inputs if n not in given]
        inputs: Mapping[str, str] = stage.get("inputs", {})
        problems = self.checker.problems
        for name in inputs:
            if name in model.get("bind", {}):
                what = f"input `{name}` of model `{stage['model']}` is bound to a constant"
                problems.add((*path, "inputs", name), what, "leave it out here", at_key=True)
            elif name not in needed:
                what = f"model `{stage['model']}` has no input {found(name)}"
                hint = did_you_mean(name, needed, only(needed, "it", "input"))
                problems.add((*path, "inputs", name), what, hint, at_key=True)
        feeder = names_of(self._stages)[index - 1] if index else "source"
        if problems.has_within((*path, "inputs")):
            return
        for name in needed:
            if not inputs and feeder is not None:
                self._check_tensor(path, name, f"{feeder}.{name}", stage)
            elif name in inputs:
                self._check_tensor(path, name, inputs[name], stage)
            else:
                what = f"input `{name}` of model `{stage['model']}` reads nothing"
                hint = f'add `{key_text(name)} = "stage.output"`, or `bind` it to a constant'
                problems.add((*path, "inputs"), what, hint)

    @property
    def _stages(self) -> Sequence[Table]:
        return Edges(self.checker, self.path, self.pipeline, None).stages

    def _section(self, name: str) -> Table:
        return next(model for model in self.checker.models if model.get("name") == name)

    def _outputs_of(self, feeder: str) -> Mapping[str, TensorFacts | None] | None:
        """Return what a stage or the source puts out, as far as it is known."""
        if feeder == "source":
            return self._source_outputs()
        stage = next((s for s in self._stages if s.get("name") == feeder), {})
        if "model" in stage:
            facts = self.facts.get(stage["model"])
            return None if facts is None else facts.outputs
        parameters = stage.get("with", {})
        if stage.get("transform") == "image_to_tensor" and "size" in parameters:
            return {"output": _image_tensor(parameters)}
        names = Edges(self.checker, self.path, self.pipeline, None).outputs_of(stage)
        return None if names is None else dict.fromkeys(names)

    def _source_outputs(self) -> Mapping[str, TensorFacts | None] | None:
        source = self.pipeline.get("source", {})
        if "outputs" in source:
            return {
                name: TensorFacts(tensor.get("dtype", "float32"), tuple(tensor["shape"]))
                for name, tensor in source["outputs"].items()
                if "shape" in tensor
            }
        if source.get("like") in self.facts:
            model = self._section(source["like"])
            inputs = self.facts[source["like"]].inputs
            return {
                name: TensorFacts(
                    tensor.dtype, tuple(model.get("shapes", {}).get(name, tensor.shape))
                )
                for name, tensor in inputs.items()
                if name not in model.get("bind", {})
            }
        return dict.fromkeys(image_outputs(source)) if source.get("kind") == "images" else None

    def _check_output(self, path: KeyPath, edge: str) -> None:
        feeder, _, output = edge.partition(".")
        outputs = self._outputs_of(feeder)
        if outputs is not None and output not in outputs:
            whose = "the source" if feeder == "source" else f"stage `{feeder}`"
            hint = did_you_mean(output, outputs, only(outputs, "it", "output"))
            self.checker.problems.add(path, f"{whose} has no output {found(output)}", hint)

    def _check_tensor(self, path: KeyPath, name: str, edge: str, stage: Table) -> None:
        """Check that what an edge carries fits the model's input."""
        feeder, _, output = edge.partition(".")
        outputs = self._outputs_of(feeder)
        is_explicit = name in stage.get("inputs", {})
        place = (*path, "inputs", name) if is_explicit else (*path, "model")
        if outputs is None:
            return
        if output not in outputs:
            if not is_explicit:
                what = f"input `{name}` of model `{stage['model']}` reads nothing: "
                whose = "the source" if feeder == "source" else f"stage `{feeder}`"
                origin = f"{feeder}.{next(iter(outputs))}" if len(outputs) == 1 else "stage.output"
                hint = f'say what it reads: `inputs = {{ {key_text(name)} = "{origin}" }}`'
                self.checker.problems.add(place, f"{what}{whose} has no output of that name", hint)
            return
        given = outputs[output]
        if given is not None:
            self._compare(place, edge, given, stage["model"], name)

    def _compare(
        self, path: KeyPath, edge: str, given: TensorFacts, model_name: str, name: str
    ) -> None:
        wanted = self.facts[model_name].inputs[name]
        shape = self._section(model_name).get("shapes", {}).get(name, wanted.shape)
        expected = f"input `{name}` of model `{model_name}` wants"
        if given.dtype != wanted.dtype:
            what = f"{expected} {wanted.dtype}, but `{edge}` is {given.dtype}"
            self.checker.problems.add(path, what)
        elif not fits(given.shape, shape):
            what = f"{expected} {shape_text(shape)}, but `{edge}` is {shape_text(given.shape)}"
            self.checker.problems.add(path, what, _shape_hint(given.shape, shape))


def fits(shape: Shape, stated: Shape) -> bool:
    """Return whether a shape agrees with another, as far as both are fixed."""
    return len(shape) == len(stated) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int)
        for a, b in zip(shape, stated, strict=True)
    )


def shape_text(shape: Shape) -> str:
    """Return a shape as `[1, batch, ?]`."""
    return f"[{', '.join('?' if d is None else str(d) for d in shape)}]"


def _shape_hint(shape: Shape, stated: Shape) -> str:
    if len(shape) != len(stated):
        return f"it has {len(stated)} dimensions, not {len(shape)}"
    wrong = [i for i in range(len(shape)) if not fits(shape[i : i + 1], stated[i : i + 1])]
    return "; ".join(f"dimension {i} is {stated[i]}, not {shape[i]}" for i in wrong)


def _image_tensor(parameters: Table) -> TensorFacts:
    channels = 1 if parameters.get("channels") == "GRAY" else 3
    height, width = parameters["size"]
    is_first = parameters.get("layout", "NCHW") == "NCHW"
    shape = (1, channels, height, width) if is_first else (1, height, width, channels)
    return TensorFacts("float32", shape)


def _first_wrong(value: object, expected: str) -> object:
    """Return the first of a bound value's numbers that is not of the kind its input is."""
    return next(
        (
            leaf
            for leaf in leaves(value)
            if isinstance(leaf, bool) != (expected == "bool")
            or (expected == "integer" and isinstance(leaf, float))
        ),
        value,
    )


def _about(size_bytes: int) -> str:
    """Return a size to three digits, for reading."""
    if size_bytes < 1024:
        return format_size(size_bytes)
    unit, divisor = next(
        (unit, divisor)
        for unit, divisor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
        if size_bytes >= divisor
    )
    return f"{size_bytes / divisor:.3g} {unit}"
