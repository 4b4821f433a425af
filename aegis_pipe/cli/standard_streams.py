"""Standard input, output and error of a process, whatever its caller made of them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def fill_gaps() -> None:
    """Have closed ones lead nowhere: a file of ours would get their number, and others write to it.

    Does nothing for those that are open.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free: this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def drop(number: int) -> None:
    """Have standard output (1) or error (2) lead nowhere from now on.

    What it could not take would otherwise fail once more when the interpreter ends.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def tell(text: str) -> None:
    """Print a line on standard error; if that can not take it, there is nobody to tell."""
    with suppress(ValueError):
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            drop(2)
