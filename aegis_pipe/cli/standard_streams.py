"""Standard input, output and error of a process, whatever its caller made of them."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO


def prepare() -> None:
    """Have closed ones lead nowhere, and open ones take any text.

    A file of ours would get the number of a closed one, and others would write to it; what is
    printed on an error stream that is None comes out on standard output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free: this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names and paths have characters that some terminals' encodings lack.
            stream.reconfigure(errors="backslashreplace")


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


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
