"""A mapping that can not grow without end."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class BoundedDict(OrderedDict[_Key, _Value]):
    """An ordered dict that gives up its oldest entries beyond a capacity, and counts them."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self.evicted = 0

    def __setitem__(self, key: _Key, value: _Value) -> None:
        super().__setitem__(key, value)
        if len(self) > self._capacity:
            self.popitem(last=False)
            self.evicted += 1
