"""Random inputs of the memory layer, and an arena of real bytes to run them in."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from aegis_pipe.memory import MemoryAnalysis, MemoryStep, Part, TensorLifetime, WorkspaceId


@st.composite
def lifetimes(draw, max_count=24, gaps=False):
    alignment = draw(st.sampled_from([1, 1, 8, 64, 256]))
    mixed = draw(st.booleans())
    result = []
    for number in range(draw(st.integers(0, max_count))):
        first = draw(st.integers(-3, 20))
        if gaps and draw(st.booleans()):
            edges = draw(st.lists(st.integers(1, 11), min_size=3, max_size=5, unique=True))
            edges = [first, *(first + edge for edge in sorted(edges))]
            pairs = tuple(zip(edges[1:-1:2], edges[2:-1:2], strict=False))
            result.append(
                TensorLifetime(
                    f"t{number}", draw(st.integers(0, 1000)), first, edges[-1], alignment, pairs
                )
            )
            continue
        result.append(
            TensorLifetime(
                f"t{number}",
                draw(st.integers(0, 1000)),
                first,
                first + draw(st.integers(1, 12)),
                draw(st.sampled_from([1, 2, 48, alignment])) if mixed else alignment,
            )
        )
    return result


@dataclass(frozen=True)
class Program:
    """A step list with everything that the analyser wants to know."""

    steps: tuple[MemoryStep, ...]
    sizes: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, int]


@st.composite
def programs(draw):
    """Draw a program with views, parts, joins, in-place pairs and scratch.

    Also of views, parts, inputs and constants.
    """
    choices = [4, 4, 8, 16]
    inputs = [f"in{i}" for i in range(draw(st.integers(0, 3)))]
    sizes = {tensor: draw(st.sampled_from(choices)) for tensor in inputs}
    constants = {f"c{i}": draw(st.sampled_from(choices)) for i in range(draw(st.integers(0, 2)))}
    steps = []
    for index in range(draw(st.integers(0, 12))):
        known = {**sizes, **constants}
        operands = draw(st.lists(st.sampled_from(sorted(known)), max_size=3)) if known else []
        if operands and draw(st.integers(0, 3)) == 0:
            result = f"v{index}"
            sizes[result] = known[operands[0]]
            steps.append(
                MemoryStep(
                    f"view{index}", (operands[0],), (result,), views=((operands[0], result),)
                )
            )
            continue
        kind = draw(st.integers(0, 5))
        if operands and kind == 0:
            step = _join(f"j{index}", operands, known)
            sizes[step.writes[0]] = sum(known[operand] for operand in operands)
            steps.append(step)
            continue
        if operands and kind == 1 and known[operands[0]] >= 4:
            step = _split(draw, f"s{index}", operands[0], known[operands[0]])
            ends = [*(part.offset_bytes for part in step.parts[1:]), known[operands[0]]]
            sizes.update(
                (part.part, end - part.offset_bytes)
                for part, end in zip(step.parts, ends, strict=True)
            )
            steps.append(step)
            continue
        results = [f"r{index}_{i}" for i in range(draw(st.integers(1, 2)))]
        for result in results:
            sizes[result] = draw(st.sampled_from([*choices, *(known[x] for x in operands)]))
        pairs = [
            (operand, result)
            for operand in operands
            for result in results
            if sizes[result] == known[operand] and draw(st.integers(0, 3))
        ]
        steps.append(
            MemoryStep(
                f"op{index}",
                tuple(operands),
                tuple(results),
                workspace_bytes=draw(st.sampled_from([0, 0, 8, 24])),
                in_place=tuple(pairs),
            )
        )
    outputs = (
        draw(st.lists(st.sampled_from(sorted(sizes)), unique=True, max_size=3)) if sizes else []
    )
    return Program(tuple(steps), sizes, tuple(inputs), tuple(outputs), constants)


def _join(name, operands, known):
    ends = list(itertools.accumulate(known[operand] for operand in operands))
    joins = [
        Part(name, operand, end - known[operand])
        for operand, end in zip(operands, ends, strict=True)
    ]
    return MemoryStep(name, tuple(operands), (name,), workspace_bytes=8, joins=tuple(joins))


def _split(draw, name, operand, size):
    edges = [0, *draw(st.sampled_from([[], [4], [size // 2], [4, size // 2]]))]
    starts = sorted({edge for edge in edges if edge < size})
    parts = tuple(Part(operand, f"{name}_{start}", start) for start in starts)
    return MemoryStep(name, (operand,), tuple(part.part for part in parts), parts=parts)


def run_apart(program: Program) -> dict[str, bytes]:
    """Run with an array for every tensor: what the outputs have to be."""
    values = _sources(program)
    for index, step in enumerate(program.steps):
        for operand, result in step.views:
            values[result] = values[operand]
        operands = [values[operand] for operand in step.reads]
        for position, result in enumerate(step.writes):
            if not step.views:
                values[result] = _compute(program, index, position, operands)
    return {output: values[output].tobytes() for output in program.outputs}


def run_in_arena(
    program: Program,
    analysis: MemoryAnalysis,
    offsets: Mapping[Hashable, int],
    arena_bytes: int,
    order: Sequence[int] | None = None,
) -> dict[str, bytes]:
    """Run at planned offsets, as nastily as a kernel may behave, in step order or another.

    A kernel scribbles over its scratch and all its results before it reads an operand; only an
    operand declared in place (position by position) is safe from the result it is declared with.
    """
    arena = np.full(arena_bytes, 0xEE, dtype=np.uint8)
    sources = _sources(program)
    storage_of = analysis.storage_of

    def start_of(tensor: str) -> int:
        return offsets[storage_of[tensor]] + analysis.offset_of.get(tensor, 0)

    def bytes_of(tensor: str) -> np.ndarray:
        if tensor not in storage_of:
            return sources[analysis.constant_of.get(tensor, tensor)]
        return arena[start_of(tensor) : start_of(tensor) + program.sizes[tensor]]

    for tensor in program.inputs:
        bytes_of(tensor)[:] = sources[tensor]
    for index in range(len(analysis.steps)) if order is None else order:
        step = analysis.steps[index]
        if step.views or step.moves:
            continue
        results = []
        for position in range(len(step.writes)):
            seen = arena.copy()
            for other in step.writes:
                bytes_of(other)[:] = 0xDD
            if step.workspace_bytes:
                start = offsets[WorkspaceId(index)]
                arena[start : start + step.workspace_bytes] = 0xCC
            operands = []
            for number, operand in enumerate(step.reads):
                value = bytes_of(operand).copy()
                if operand in storage_of:
                    start = start_of(operand)
                    declared = [r for x, r in step.in_place if x == operand]
                    used = step.reads[:number].count(operand)
                    safe = {r for r in declared if declared.count(r) > used}
                    for target in safe:
                        if start_of(target) == start:
                            value = seen[start : start + program.sizes[operand]].copy()
                operands.append(value)
            results.append(_compute(program, index, position, operands))
            arena[:] = seen
        for result in step.writes:
            bytes_of(result)[:] = 0xDD
        if step.workspace_bytes:
            start = offsets[WorkspaceId(index)]
            arena[start : start + step.workspace_bytes] = 0xCC
        for result, value in zip(step.writes, results, strict=True):
            bytes_of(result)[:] = value
        if step.workspace_bytes:
            start = offsets[WorkspaceId(index)]
            arena[start : start + step.workspace_bytes] = 0xCB
    return {output: bytes_of(output).tobytes() for output in program.outputs}


def _sources(program: Program) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    known = {tensor: program.sizes[tensor] for tensor in program.inputs} | dict(program.constants)
    return {
        tensor: generator.integers(0, 256, size, dtype=np.uint8) for tensor, size in known.items()
    }


def _compute(program: Program, index: int, position: int, operands: list[np.ndarray]) -> np.ndarray:
    """Move the operands, or mix them so that any changed byte shows in the result."""
    step = program.steps[index]
    size = program.sizes[step.writes[position]]
    if step.joins:
        return np.concatenate(operands)
    if step.parts:
        start = step.parts[position].offset_bytes
        return operands[0][start : start + size].copy()
    result = (np.arange(size) * 31 + index * 7 + position * 3 + 1).astype(np.uint8)
    for number, operand in enumerate(operands):
        result += np.resize(operand, size) * np.uint8(2 * number + 3) + np.uint8(
            operand.sum() & 255
        )
    return result
