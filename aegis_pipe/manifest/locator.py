"""Finds where each key of a TOML text stands; tomllib reads values but forgets their places.

The scanner knows only as much TOML as it takes to step over keys and values; it is meant for
texts that tomllib has accepted, or for the part of a text before the place it refused.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import sys
from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the root: `("models", 0, "period")`."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\r\n]+")
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)")
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


@dataclass(slots=True)
class Locations:
    """Offsets of keys and values in a text."""

    line_starts: list[int]
    keys: dict[KeyPath, int] = field(default_factory=dict)
    values: dict[KeyPath, int] = field(default_factory=dict)
    duplicate: tuple[KeyPath, int, int] | None = None
    """The first key that stands twice: the key and the offsets of both."""

    def position(self, path: KeyPath, *, at_key: bool = False) -> tuple[int, int]:
        """Return line and column of a key, of its value, or of what encloses it."""
        first, second = (self.keys, self.values) if at_key else (self.values, self.keys)
        while path:
            offset = first.get(path, second.get(path))
            if offset is not None:
                return self.line_column(offset)
            path = path[:-1]
        return (1, 1)

    def line_column(self, offset: int) -> tuple[int, int]:
        """Convert an offset to line and column, both from 1."""
        line = bisect.bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1


def locate(text: str) -> Locations:
    """Return where the keys of a text stand; stops quietly at what is not TOML."""
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    scanner = _Scanner(text, Locations(starts))
    # tomllib names the error; what was found before it is enough to describe it.
    with contextlib.suppress(_NotTomlError):
        scanner.document()
    return scanner.locations


class _NotTomlError(Exception):
    """The text does not go on as TOML."""


class _Scanner:
    def __init__(self, text: str, locations: Locations) -> None:
        self.text = text
        self.at = 0
        self.locations = locations
        self.list_lengths: dict[KeyPath, int] = {}
        self.defined: dict[KeyPath, int] = {}

    def document(self) -> None:
        table: KeyPath = ()
        self.skip(_BLANK)
        while self.at < len(self.text):
            if self.text.startswith("[", self.at):
                table = self.header()
            else:
                self.assignment(table)
            self.skip(_BLANK)

    def header(self) -> KeyPath:
        """Read `[a.b]` or `[[a.b]]`; return the table that it opens."""
        start = self.at
        is_list = self.text.startswith("[[", self.at)
        self.at += 2 if is_list else 1
        *parents, last = (part for part, _ in self.dotted_key())
        path: KeyPath = ()
        for part in parents:
            path = self.latest((*path, part))
            self.locations.keys.setdefault(path, start)
        path = (*path, last)
        if is_list:
            self.locations.keys.setdefault(path, start)
            index = self.list_lengths.get(path, 0)
            self.list_lengths[path] = index + 1
            path = (*path, index)
            self.locations.keys[path] = start
        else:
            self.note_key(self.latest(path), start)
        self.expect("]]" if is_list else "]")
        return self.latest(path)

    def latest(self, path: KeyPath) -> KeyPath:
        """Return the last element of a list of tables, or the path itself."""
        length = self.list_lengths.get(path)
        return path if length is None else (*path, length - 1)

    def assignment(self, table: KeyPath) -> None:
        path = table
        parts = self.dotted_key()
        for part, offset in parts[:-1]:
            path = (*path, part)
            self.locations.keys.setdefault(path, offset)
        path = (*path, parts[-1][0])
        self.note_key(path, parts[-1][1])
        self.expect("=")
        self.skip(_SPACE)
        self.value(path)

    def note_key(self, path: KeyPath, offset: int) -> None:
        """Note a key where it is defined; `[a.b]` names `a`, but does not define it."""
        first = self.defined.setdefault(path, offset)
        if first == offset:
            self.locations.keys[path] = offset
        elif self.locations.duplicate is None:
            self.locations.duplicate = (path, first, offset)

    def dotted_key(self) -> list[tuple[str, int]]:
        parts = []
        while True:
            self.skip(_SPACE)
            offset = self.at
            parts.append((self.simple_key(), offset))
            self.skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1

    def simple_key(self) -> str:
        if self.text[self.at : self.at + 1] in {'"', "'"}:
            quoted = self.take(_STRING)
            return quoted[1:-1] if quoted[0] == "'" else _ESCAPE.sub(_unescape, quoted[1:-1])
        return self.take(_BARE_KEY)

    def value(self, path: KeyPath) -> None:
        self.locations.values[path] = self.at
        match self.text[self.at : self.at + 1]:
            case "[":
                self.sequence(path, "]")
            case "{":
                self.sequence(path, "}")
            case '"' | "'":
                self.take(_STRING)
            case _:
                self.take(_SCALAR)

    def sequence(self, path: KeyPath, closing: str) -> None:
        """Read an array or an inline table."""
        self.at += 1
        index = 0
        self.skip(_BLANK)
        while not self.text.startswith(closing, self.at):
            if closing == "]":
                self.value((*path, index))
            else:
                self.assignment(path)
            index += 1
            self.skip(_BLANK)
            if self.text.startswith(",", self.at):
                self.at += 1
                self.skip(_BLANK)
            elif not self.text.startswith(closing, self.at):
                raise _NotTomlError
        self.at += 1

    def expect(self, token: str) -> None:
        self.skip(_SPACE)
        if not self.text.startswith(token, self.at):
            raise _NotTomlError
        self.at += len(token)

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise _NotTomlError
        self.at = match.end()
        return match.group()

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at


def _unescape(match: re.Match[str]) -> str:
    code = match.group(1)
    if code in _ESCAPES:
        return _ESCAPES[code]
    if len(code) == 1 or int(code[1:], 16) > sys.maxunicode:
        raise _NotTomlError
    return chr(int(code[1:], 16))
