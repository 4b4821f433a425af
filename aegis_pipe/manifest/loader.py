"""Reads a manifest and tells everything that is wrong with it at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from aegis_pipe.errors import ManifestError, Problem
from aegis_pipe.manifest.checks import Checker
from aegis_pipe.manifest.conversion import manifest_from_table
from aegis_pipe.manifest.locator import Locations, locate
from aegis_pipe.manifest.model import Manifest, ModelFacts
from aegis_pipe.manifest.model_checks import check_models
from aegis_pipe.manifest.output_checks import check_outputs
from aegis_pipe.manifest.problems import ProblemList, path_text
from aegis_pipe.manifest.validation import check_schema

MAX_FILE_BYTES = 4 * 2**20

InspectModel = Callable[[Path], ModelFacts]


def load_manifest(path: str | Path, *, inspect_model: InspectModel | None = None) -> Manifest:
    """Read a manifest file; relative paths in it start from its folder.

    With `inspect_model` the manifest is also held against the content of its model files; an
    AegisError that it raises becomes a problem of that model's `path`.

    Raises ManifestError with all problems, each with its line, the key and a hint.
    """
    file = Path(path)
    text = _read(file)
    table, locations = _parse(str(path), text)
    problems = ProblemList(str(path), text, locations)
    check_schema(table, problems)
    checker = Checker(table, file.parent, problems)
    checker.run()
    check_outputs(checker)
    if inspect_model is not None:
        check_models(checker, inspect_model)
    problems.raise_if_any()
    return manifest_from_table(table, file.parent, file.stem)


# --- the file -----------------------------------------------------------------------------------


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise _whole_file(file, "there is no such file", _nearby(file)) from None
    except IsADirectoryError:
        raise _whole_file(file, "this is a folder, not a manifest", _nearby(file / "_")) from None
    except OSError as error:
        raise _whole_file(file, f"it can not be read: {error.strerror}") from error
    return _decode(file, content)


def _decode(file: Path, content: bytes) -> str:
    if len(content) > MAX_FILE_BYTES:
        raise _whole_file(file, f"it is larger than {MAX_FILE_BYTES >> 20} MiB, the most there is")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _whole_file(file, "it is written in UTF-16", "save it as UTF-8")
    if content.startswith(b"\xef\xbb\xbf"):
        hint = "save it as UTF-8 without it"
        raise _whole_file(file, "it begins with a byte order mark", hint)
    if not content.strip():
        raise _whole_file(file, "it is empty", "`aegis-pipe init` writes a first manifest")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        what = f"byte 0x{content[error.start]:02x} is not UTF-8"
        raise _error(Problem(str(file), line, column, "", what, hint="save it as UTF-8")) from error


def _nearby(file: Path) -> str:
    names = sorted(other.name for other in file.parent.glob("*.toml"))[:3]
    return f"manifests here: {', '.join(f'`{name}`' for name in names)}" if names else ""


def _whole_file(file: Path, what: str, hint: str = "") -> ManifestError:
    return _error(Problem(str(file), 0, 0, "", what, hint=hint))


def _error(problem: Problem) -> ManifestError:
    return ManifestError.of([problem])


# --- TOML ---------------------------------------------------------------------------------------


def _parse(file: str, text: str) -> tuple[dict[str, Any], Locations]:
    try:
        return tomllib.loads(text), locate(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(file, text, str(error)) from error
    except RecursionError as error:
        raise _whole_file(Path(file), "its lists or tables are nested too deeply") from error
    except ValueError as error:
        # Python refuses to read integers of thousands of digits, and tomllib does not expect it.
        raise _whole_file(Path(file), "a number in it has too many digits") from error


class _SyntaxText(NamedTuple):
    pattern: str
    what: str
    hint: str


# tomllib's words on the left; they are the same in all supported versions of Python.
_SYNTAX_TEXTS = (
    _SyntaxText("Invalid value", "this is no TOML value", 'text needs quotes: "..."'),
    _SyntaxText(
        "Expected '=' after a key",
        "expected `=` after the key",
        "a manifest is TOML: `key = value`",
    ),
    _SyntaxText(
        "Invalid statement",
        "expected a key or a `[section]`",
        "a manifest is TOML: `key = value` below `[section]`",
    ),
    _SyntaxText(
        "Expected newline or end of document",
        "more text after the value",
        "write one `key = value` on a line; quotes inside a text need a backslash",
    ),
    _SyntaxText("Unclosed array", "a list is not closed", "add `]`"),
    _SyntaxText(
        "Unclosed inline table", "a table is not closed", "add `}`, or `,` before more keys"
    ),
    _SyntaxText("Unterminated string", "a text is not closed", "add the closing quote"),
    _SyntaxText('Expected "\'"', "a text is not closed", "add the closing quote"),
    _SyntaxText('Expected .*\\"\\"\\"', "a text is not closed", "add the closing quotes"),
    _SyntaxText(r"Illegal character '\\n'", "a text is not closed", "add the closing quote"),
    _SyntaxText(
        "Illegal character", "an invisible character that TOML does not allow", "delete it"
    ),
    _SyntaxText("Found invalid character", "a character that TOML does not allow", "delete it"),
    _SyntaxText(
        "Unescaped|Invalid hex", "a backslash that is no escape", r"write `\\`, or use '...' quotes"
    ),
    _SyntaxText("Expected .*]", "a section's header is not closed", "write `[name]` or `[[name]]`"),
    _SyntaxText("Invalid initial character for a key", "expected a key", ""),
    _SyntaxText("Invalid date", "this is no date or time", ""),
    _SyntaxText(
        "Cannot (overwrite|mutate|redefine|append|declare)",
        "this is already defined in another way",
        "lists of sections are written `[[name]]`, one section `[name]`",
    ),
)


def _syntax_error(file: str, text: str, message: str) -> ManifestError:
    """Return tomllib's complaint in our words, at its place."""
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    line, column = (int(place[1]), int(place[2])) if place and place[1] else _end_of(text)
    problems = ProblemList(file, text)
    locations = locate(text)
    if locations.duplicate and locations.line_column(locations.duplicate[2])[0] <= line:
        path, first, second = locations.duplicate
        what = f"`{path_text(path)}` is already defined on line {locations.line_column(first)[0]}"
        problems.add_at(*locations.line_column(second), what, "keep one of them")
    else:
        what, hint = _in_our_words(message[: place.start()] if place else message)
        problems.add_at(line, column, what, _line_hint(text.splitlines()[line - 1]) or hint)
    try:
        problems.raise_if_any()
    except ManifestError as error:
        return error
    raise AssertionError("a syntax error is a problem")


# What people write in one line that is no TOML, and what to write instead.
_LINE_HINTS = (
    (r"=\s*([0-9.]+ ?(?:[kKMG]i?B|ns|us|ms|s|min|h|/\w+))\b", r'quotes around it: "\1"'),
    (r"=\s*(True|False|yes|no|on|off|None|null)\b", "write `true` or `false`; TOML has no null"),
    (r"=\s*0[0-9]", "numbers have no leading zero"),
    (r"=\s*(#|$)", "write a value, or leave the key out"),
)


def _line_hint(line: str) -> str:
    for pattern, hint in _LINE_HINTS:
        match = re.search(pattern, line)
        if match:
            return match.expand(hint)
    return ""


def _in_our_words(message: str) -> tuple[str, str]:
    for pattern, what, hint in _SYNTAX_TEXTS:
        if re.match(pattern, message):
            return what, hint
    return f"{message[0].lower()}{message[1:]}", ""


def _end_of(text: str) -> tuple[int, int]:
    """Return the place behind the last character that is not blank."""
    before = text.rstrip()
    return before.count("\n") + 1, len(before) - before.rfind("\n")
