"""Collects everything that is wrong with a manifest, each at its place in the text."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

from aegis_pipe.errors import ManifestError, Problem
from aegis_pipe.manifest.locator import KeyPath, Locations
from aegis_pipe.manifest.schema import meaning_of

__all__ = [
    "Problem",
    "ProblemList",
    "did_you_mean",
    "found",
    "key_text",
    "listed",
    "nearest",
    "only",
    "path_text",
]

_BARE_KEY = re.compile("[A-Za-z0-9_-]+")
_LINE_WIDTH = 120
_VALUE_WIDTH = 60
_HEADERS = re.compile(r".*?\bheaders\b[^=]*=")
_HEADERS_TABLE = re.compile(r"\s*\[[^]]*\bheaders\b")
_ANY_VALUE = re.compile("[^=]*=")


class ProblemList:
    """The problems of one file so far; at most one for each key, the first that was found."""

    def __init__(self, file: str, text: str = "", locations: Locations | None = None) -> None:
        self.file = file
        self._lines = text.splitlines()
        self._locations = locations
        self._problems: dict[KeyPath, Problem] = {}

    def add(self, path: KeyPath, what: str, hint: str = "", *, at_key: bool = False) -> None:
        """Note a problem with a key: at its value, or `at_key` at its name."""
        assert self._locations is not None, "a key has no place before the text is read"
        line, column = self._locations.position(path, at_key=at_key)
        self._note(path, line, column, what, hint)

    def add_at(self, line: int, column: int, what: str, hint: str = "") -> None:
        """Note a problem with the text itself; line 0 is the file as a whole."""
        self._note((), line, column, what, hint)

    def line_of(self, path: KeyPath) -> int:
        """Return the line on which a key stands."""
        assert self._locations is not None, "a key has no place before the text is read"
        return self._locations.position(path, at_key=True)[0]

    def has(self, path: KeyPath) -> bool:
        """Return whether a key has a problem already."""
        return path in self._problems

    def has_within(self, path: KeyPath) -> bool:
        """Return whether a key, or one inside its value, has a problem already."""
        return any(other[: len(path)] == path for other in self._problems)

    def raise_if_any(self) -> None:
        """Raise ManifestError with all problems in the order of the text."""
        if self._problems:
            ordered = sorted(self._problems.values(), key=lambda p: (p.line, p.column, p.path))
            raise ManifestError.of(ordered)

    def _note(self, path: KeyPath, line: int, column: int, what: str, hint: str) -> None:
        source = self._source_line(line).strip() if 0 < line <= len(self._lines) else ""
        problem = Problem(
            file=self.file,
            line=line,
            column=column,
            path=path_text(path),
            what=what,
            source_line=_shown(source, _LINE_WIDTH),
            hint=hint or meaning_of(path),
        )
        self._problems.setdefault(path, problem)

    def _source_line(self, line: int) -> str:
        """Return a line without headers' values, which may be secrets; correct TOML or not."""
        text = self._lines[line - 1]
        tables = [each for each in self._lines[:line] if each.lstrip().startswith("[")]
        is_inside = bool(tables) and _HEADERS_TABLE.match(tables[-1]) is not None
        found = (_ANY_VALUE if is_inside else _HEADERS).match(text)
        return text if found is None else f"{found[0]} ..."


def path_text(path: KeyPath) -> str:
    """Return a key as people write it: `models[0].shapes.images`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + key_text(part)
    return text


def key_text(key: str) -> str:
    """Return a key as TOML writes it, in quotes where it needs them."""
    return key if _BARE_KEY.fullmatch(key) else found(key)


def found(value: object) -> str:
    """Return a value of a TOML file as a message names it."""
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value)
        case int():
            return "a huge number" if abs(value) >= 10**40 else repr(value)
        case str():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            return f'"{_shown(escaped, _VALUE_WIDTH)}"' if value else "an empty string"
        case list():
            return _found_list(value)
        case dict():
            return "a table"
        case _:
            return "a date or time"


def _found_list(value: list[object]) -> str:
    text = f"[{', '.join(map(found, value))}]"
    is_short = len(text) <= _VALUE_WIDTH and not any(isinstance(i, dict | list) for i in value)
    return (text if is_short else "a list") if value else "an empty list"


def listed(names: Iterable[str], *, last: str = "and") -> str:
    """Return names in backticks: "`a`, `b` and `c`"."""
    quoted = [f"`{name}`" for name in names]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"


def only(names: Collection[str], whose: str, noun: str) -> str:
    """Return the hint that tells all names there are: "its outputs are `a` and `b`"."""
    if not names:
        return f"{whose} has no {noun}s"
    pronoun = "its" if whose.startswith("it") else "the"
    if len(names) == 1:
        return f"{pronoun} only {noun} is {listed(names)}"
    return f"{pronoun} {noun}s are {listed(names)}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was most likely meant, if any is near."""
    names = list(known)
    same_letters = [other for other in names if other.lower() == name.lower()]
    near = same_letters or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return near[0] if near else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the hint that names the nearest known name, or another one."""
    near = nearest(name, known)
    return f"did you mean `{near}`?" if near is not None else otherwise


def _shown(text: str, width: int) -> str:
    """Make a text fit for one line of a terminal, whatever characters it holds."""
    printable = "".join(
        c if c.isprintable() else " " if c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return printable if len(printable) <= width else printable[: width - 3] + "..."
