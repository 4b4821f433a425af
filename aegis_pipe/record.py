"""Values that are made by the thousand while loading: immutable to the type checker alone.

A frozen dataclass refuses assignment at run time too, and pays for it whenever one is made: each
field goes through `object.__setattr__`, which takes six times as long as a plain assignment. What
there is one of for each operator or tensor is a `record` instead; assigning to its fields is as
wrong, and mypy says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

_Class = TypeVar("_Class")


@dataclass_transform(eq_default=False, frozen_default=True, field_specifiers=(field,))
def record(*, eq: bool = False) -> Callable[[type[_Class]], type[_Class]]:
    """Make a dataclass with slots, whose fields are not to be assigned to.

    With `eq`, two of them are equal, and have one hash, if all their fields are equal; otherwise
    each is equal to itself only.
    """
    return dataclass(slots=True, eq=eq, unsafe_hash=eq)
