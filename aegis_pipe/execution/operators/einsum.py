"""Einsum.

Canonical form: Einsum(inputs...) with `equation` explicit: one letter a dimension, no spaces, no
ellipsis, with its output. A letter may stand for 1 in one operand and n in another: it broadcasts.
"""

from __future__ import annotations

import string

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec


def explicit_equation(context: OperatorContext) -> str:
    """Return the equation with its ellipses spelt out and its output stated."""
    equation = reading.text(context, "equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    reading.require(
        len(terms) == len(context.inputs), context, f"equation `{equation}` does not fit the inputs"
    )
    unused = [letter for letter in string.ascii_letters if letter not in equation]
    ranks = [
        len(reading.operand(context, position, "Inputs").shape) - len(term.replace("...", ""))
        for position, term in enumerate(terms)
    ]
    widest = max((r for r, term in zip(ranks, terms, strict=True) if "..." in term), default=0)
    ellipsis = "".join(unused[:widest])
    terms = [
        term.replace("...", ellipsis[widest - rank :])
        for term, rank in zip(terms, ranks, strict=True)
    ]
    if arrow:
        return f"{','.join(terms)}->{right.replace('...', ellipsis)}"
    letters = "".join(terms)
    once = sorted(x for x in set(letters) if letters.count(x) == 1 and x not in ellipsis)
    return f"{','.join(terms)}->{ellipsis}{''.join(once)}"


def _infer(context: OperatorContext) -> list[TensorSpec]:
    equation = explicit_equation(context)
    left, _, right = equation.partition("->")
    sizes: dict[str, int] = {}
    for position, term in enumerate(left.split(",")):
        shape = reading.operand(context, position, "Inputs").shape
        reading.require(len(term) == len(shape), context, f"`{term}` does not fit {list(shape)}")
        for letter, size in zip(term, shape, strict=True):
            known = sizes.setdefault(letter, size)
            reading.require(
                known == size or 1 in (known, size), context, f"sizes of `{letter}` differ"
            )
            sizes[letter] = size if known == 1 else known
    reading.require(set(right) <= set(sizes), context, f"`{right}` has a letter no input has")
    first = reading.operand(context, 0, "Inputs")
    return [reading.like(first, [sizes[letter] for letter in right])]


def _lower(context: OperatorContext) -> Lowered:
    positions = tuple(range(len(context.inputs)))
    return Lowered("Einsum", {"equation": explicit_equation(context)}, positions)


ENTRIES: tuple[OperatorEntry, ...] = (OperatorEntry("Einsum", _infer, _lower),)
