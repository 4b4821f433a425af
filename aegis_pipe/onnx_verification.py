"""Compares a model's outputs with those of others who run the same file.

    onnxruntime   ONNX Runtime with graph optimisations off, on one thread (they change results,
                  and have been seen to change them wrongly)
    onnx          the reference evaluator of the `onnx` package, with the operators corrected in
                  which it departs from the specification

What a model chooses by comparing numbers (boxes, say) is another choice by the least difference.
Where such an output is not the reference's, what it was chosen from is compared, and the choice
with that of the reference from the same.

Where an output parts from a reference (be it one that the other contradicts), every tensor that
both sides have becomes an output, and the first operator whose error jumps is named.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from aegis_pipe.clock import Clock
from aegis_pipe.device.protocols import DeviceContext, DeviceStream
from aegis_pipe.errors import InvalidInputError, PermanentError
from aegis_pipe.execution.choices import choice_of
from aegis_pipe.execution.deployment import ModelOrder
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.execution.model_loader import ModelLoader
from aegis_pipe.execution.output_comparison import Arithmetic, Difference, arithmetic_of, compare
from aegis_pipe.execution.passes import run_passes
from aegis_pipe.execution.reference_corrections import CORRECTIONS
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.reference_model import ReferenceModel, read_reference_model
from aegis_pipe.tensor import TensorSpec

ERROR_JUMP = 10.0
"""An error so many times that of an operator's operands is the operator's own."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class VerificationOptions:
    """What to compare, and how strictly."""

    inputs: Mapping[str, np.ndarray] | None = None
    """None: generated from the seed."""
    seed: int = 0
    tolerance: float | None = None
    """Standard deviations; None: what the model's arithmetic allows."""
    references: tuple[str, ...] = ()
    """Names in `REFERENCES`; empty: all that are installed."""
    precisions: tuple[str, ...] = ("fp32",)
    """What the device is asked to compute with, one after the other; references run once."""


@dataclass(frozen=True, slots=True)
class OutputVerification:
    """One output beside its references."""

    name: str
    spec: TensorSpec
    differences: Mapping[str, Difference]
    """By reference."""
    passed: bool
    note: str = ""
    """What else to know of the verdict."""


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """Where two computations part."""

    reference: str
    node: str = ""
    """Empty if they agree in everything once every tensor is kept, or if `tensor` is constant."""
    operator: str = ""
    kernel: str = ""
    tensor: str = ""
    before: float = 0.0
    """Largest error among the operands, in standard deviations."""
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelVerification:
    """The verdict on one model in one precision."""

    model: str
    precision: str
    """What the device was asked to compute with."""
    arithmetic: Arithmetic
    outputs: tuple[OutputVerification, ...]
    not_run: Mapping[str, str] = field(default_factory=dict)
    """References that gave no outputs, and why."""
    first_difference: FirstDifference | None = None

    @property
    def passed(self) -> bool:
        """Whether every output passed."""
        return all(output.passed for output in self.outputs)


def verify_model(
    order: ModelOrder,
    context: DeviceContext,
    stream: DeviceStream,
    clock: Clock,
    options: VerificationOptions,
) -> tuple[ModelVerification, ...]:
    """Run a model here in every precision asked for, and once with the references, and compare.

    Raises the AegisError of a model that does not load or run here, InvalidInputError for inputs
    that do not fit, and PermanentError for a precision that the device has not got, or if no
    reference could run the model.
    """
    graph = ModelLoader().load(order.path, order.options)
    inputs = dict(options.inputs) if options.inputs else generate_inputs(graph, options.seed)
    found = {}
    for precision in options.precisions:
        with StandaloneGraph(graph, context, stream, clock, precision) as standalone:
            found[precision] = standalone.run(inputs)
    model = read_reference_model(order, inputs)
    expected, not_run = _run_references(model, _chosen(options.references))
    if not expected:
        reasons = "; ".join(f"{name} {reason}" for name, reason in not_run.items())
        raise PermanentError(
            f"no reference could run the model: {reasons}",
            context=f"model `{order.name}`",
            hint="`pip install onnxruntime` brings the one that runs most models",
        )
    results = []
    for precision, values in found.items():
        arithmetic = arithmetic_of(graph, precision)
        if options.tolerance is not None:
            arithmetic = arithmetic.with_tolerance(options.tolerance)
        outputs = tuple(
            _verify_output(name, values[name], expected, arithmetic) for name in graph.results
        )
        search = _Search(graph, context, stream, clock, inputs, arithmetic, precision)
        if not all(output.passed for output in outputs):
            outputs = search.choices_judged(model, outputs, values, tuple(expected))
        result = ModelVerification(order.name, precision, arithmetic, outputs, not_run)
        reference = _disagreeing(outputs)
        if reference is not None:
            result = replace(result, first_difference=search.first_difference(model, reference))
        results.append(result)
    return tuple(results)


def _onnxruntime(model: ReferenceModel) -> Arrays:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # From the file where it can be: it may be larger than one message.
    source = model.proto.SerializeToString() if model.edited else str(model.path)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    values = session.run(model.output_names, dict(model.inputs))
    return dict(zip(model.output_names, values, strict=True))


def _reference_evaluator(model: ReferenceModel) -> Arrays:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model.proto, new_ops=list(CORRECTIONS))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = evaluator.run(None, dict(model.inputs))
    return dict(zip(model.output_names, values, strict=True))


REFERENCES: dict[str, Callable[[ReferenceModel], Arrays]] = {
    "onnxruntime": _onnxruntime,
    "onnx": _reference_evaluator,
}
"""Whom to compare with; each is the name of the package it needs."""


def _chosen(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the references to run. Raises PermanentError if one asked for is not installed."""
    for name in names:
        if name not in REFERENCES:
            raise InvalidInputError(
                f"there is no reference `{name}`", hint=f"there are {', '.join(REFERENCES)}"
            )
        if not _is_installed(name):
            raise PermanentError(f"`{name}` is not installed", hint=f"`pip install {name}`")
    return names or tuple(REFERENCES)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _run_references(
    model: ReferenceModel, names: Sequence[str]
) -> tuple[dict[str, Arrays], dict[str, str]]:
    """Return the outputs by reference, and why others gave none."""
    outputs, not_run = {}, {}
    for name in names:
        if not _is_installed(name):
            not_run[name] = f"is not installed (`pip install {name}`)"
            continue
        try:
            outputs[name] = REFERENCES[name](model)
        except Exception as error:  # Others' code: it raises what it likes, and we pass it on.
            text = str(error).strip() or "no message"
            not_run[name] = f"failed with {type(error).__name__}: {text.splitlines()[0]}"
    return outputs, not_run


def _verify_output(
    name: str, found: np.ndarray, expected: Mapping[str, Arrays], arithmetic: Arithmetic
) -> OutputVerification:
    """Judge one output: all references have to be met, unless they contradict each other."""
    values = {reference: np.asarray(outputs[name]) for reference, outputs in expected.items()}
    differences = {
        reference: compare(found, value, arithmetic) for reference, value in values.items()
    }
    met = [reference for reference, difference in differences.items() if difference.passed]
    missed = [reference for reference in differences if reference not in met]
    passed = not missed
    constant = found.size > 1 and bool((found == found.flat[0]).all())
    note = "all its values are equal, so this says little" if constant else ""
    # A reference may be wrong itself; that shows where another one contradicts it.
    if missed and met and not any(_agree(values[met[0]], values[m], arithmetic) for m in missed):
        passed, note = True, f"the references differ; this is as {met[0]} has it"
    return OutputVerification(name, TensorSpec(found.dtype, found.shape), differences, passed, note)


def _agree(one: np.ndarray, other: np.ndarray, arithmetic: Arithmetic) -> bool:
    return compare(one, other, arithmetic).passed


def _disagreeing(outputs: Sequence[OutputVerification]) -> str | None:
    """Return the reference that is missed first; by outputs that failed, if there are any."""
    for output in sorted(outputs, key=lambda each: each.passed):
        for name, difference in output.differences.items():
            if not difference.passed:
                return name
    return None


@dataclass(frozen=True, slots=True)
class _Search:
    """Looks into a model whose outputs are not those of its references."""

    graph: ExecutionGraph
    context: DeviceContext
    stream: DeviceStream
    clock: Clock
    inputs: Arrays
    arithmetic: Arithmetic
    precision: str

    def choices_judged(
        self,
        model: ReferenceModel,
        outputs: Sequence[OutputVerification],
        values: Arrays,
        references: Sequence[str],
    ) -> tuple[OutputVerification, ...]:
        """Judge what was chosen by what references choose from the same, if that is as theirs.

        Outputs stay as they were judged if the model is computed otherwise once it shows what it
        chose from, or if nobody else can show that.
        """
        choice = choice_of(self.graph)
        missed = {output.name for output in outputs if not output.passed}
        if choice is None or missed.isdisjoint(choice.outputs):
            return tuple(outputs)
        inner = tuple(t for t in choice.sources if t not in self.graph.inputs)
        if not inner or not model.tensor_names().issuperset(inner):
            return tuple(outputs)
        shown = tuple(dict.fromkeys((*self.graph.outputs, *inner)))
        found = self._run(replace(self.graph, outputs=shown))[0]
        if any(found[name].tobytes() != values[name].tobytes() for name in self.graph.results):
            return tuple(outputs)
        given: Arrays = {tensor: found[tensor] for tensor in inner}
        names = tuple(references)
        theirs, _ = _run_references(model.with_outputs(inner), names)
        chosen, _ = _run_references(model.going_on_from(given), names)
        farthest: dict[str, float] = {}
        for name in chosen.keys() & theirs.keys():
            of_sources = [compare(given[t], theirs[name][t], self.arithmetic) for t in inner]
            if all(each.passed for each in of_sources):
                farthest[name] = max((each.deviations for each in of_sources), default=0.0)
        expected = {name: chosen[name] for name in names if name in farthest}
        if not expected:
            return tuple(outputs)
        note = (
            f"judged by what {' and '.join(expected)} would choose from the same "
            f"{', '.join(f'`{tensor}`' for tensor in inner)}: at most "
            f"{max(farthest.values()):.1e} x std from what they have there"
        )
        return tuple(
            replace(
                _verify_output(output.name, values[output.name], expected, self.arithmetic),
                note=note,
            )
            if output.name in missed and output.name in choice.outputs
            else output
            for output in outputs
        )

    def _run(self, graph: ExecutionGraph) -> tuple[Arrays, dict[str, str]]:
        """Return the results, and the kernels by node."""
        with StandaloneGraph(
            graph, self.context, self.stream, self.clock, self.precision
        ) as standalone:
            kernels = {step.node: step.choice.kernel for step in standalone.compiled.steps}
            return standalone.run(self.inputs), kernels

    def first_difference(self, model: ReferenceModel, reference: str) -> FirstDifference | None:
        """Compare all tensors; None if the reference can not show them."""
        # After the passes, so that operators they made are looked at as they run.
        graph = run_passes(self.graph)[0]
        named = model.tensor_names()
        tensors = [
            tensor
            for node in graph.operators
            for tensor in node.outputs
            if tensor in named and tensor in graph.specs
        ]
        kept = tuple(dict.fromkeys((*tensors, *graph.results)))
        expected, _ = _run_references(model.with_outputs(kept), (reference,))
        if not expected:
            return None
        lengths = {tensor: graph.lengths[tensor] for tensor in kept if tensor in graph.lengths}
        counts = [length for axes in lengths.values() for length in axes.values()]
        outputs = tuple(dict.fromkeys((*kept, *counts)))
        watched = replace(graph, outputs=outputs, lengths=lengths)
        found, kernels = self._run(watched)
        differences: dict[str, Difference] = {
            tensor: compare(found[tensor], np.asarray(expected[reference][tensor]), self.arithmetic)
            for tensor in kept
            # Inside of the model, what is as long as the data says stays as long as planned.
            if tensor in graph.results or found[tensor].shape == expected[reference][tensor].shape
        }
        constant = [
            t
            for t in kept
            if t in graph.constants and t in differences and not differences[t].passed
        ]
        if constant:
            return FirstDifference(reference, tensor=constant[0])
        first = _first_jump(graph, differences)
        if first is None:
            return FirstDifference(reference)
        return replace(first, reference=reference, kernel=kernels.get(first.node, ""))


def _first_jump(
    graph: ExecutionGraph, differences: Mapping[str, Difference]
) -> FirstDifference | None:
    """Return the first failing tensor whose error is no heritage; else the first failing one."""
    failing = []
    for node in graph.operators:
        before = max(
            (_error(differences[name]) for name in node.inputs if name in differences), default=0.0
        )
        for tensor in node.outputs:
            if tensor in differences and not differences[tensor].passed:
                after = _error(differences[tensor])
                found = FirstDifference(
                    "", node.name, node.qualified_operator, "", tensor, before, after
                )
                if after > ERROR_JUMP * before:
                    return found
                failing.append(found)
    return failing[0] if failing else None


def _error(difference: Difference) -> float:
    """Return the error in deviations; infinite where the tensors can not be compared."""
    return math.inf if math.isnan(difference.deviations) else difference.deviations
