"""Holds a parsed file against the schema and says in our own words what does not fit.

The schema carries, besides JSON Schema's keywords: `x-unit` (size, duration or rate) with
`x-minimum` and `x-maximum` as text with a unit, `x-expected` (what should stand there, for
messages), `x-choices` and `x-aliases` (names to suggest), `x-hint` (what to do if a key is
missing) and `x-default` (what leaving the key out means).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import jsonschema
from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from aegis_pipe.manifest.locator import KeyPath
from aegis_pipe.manifest.problems import (
    ProblemList,
    did_you_mean,
    found,
    key_text,
    listed,
    nearest,
    path_text,
)
from aegis_pipe.manifest.schema import load_schema, resolved
from aegis_pipe.units import format_size, parse_duration, parse_rate, parse_size

Table = dict[str, Any]


class Misfit(NamedTuple):
    """A value that does not fit one keyword of the schema."""

    keyword: str
    wanted: Any
    """The keyword's own value."""
    schema: Table
    """The part of the schema that holds the keyword."""
    value: Any
    path: KeyPath
    message: str
    """jsonschema's words; ours for the keywords with `x-`."""


Says = Callable[[Misfit, ProblemList], None]

_PARSERS: Mapping[str, Callable[[str], float]] = {
    "size": parse_size,
    "duration": parse_duration,
    "rate": parse_rate,
}
_EXAMPLES = {
    "size": 'a size such as "512 MiB"',
    "duration": 'a duration such as "20 ms"',
    "rate": 'a rate such as "30/s"',
}
_TYPES = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "`true` or `false`",
    "array": "a list",
    "object": "a table",
}
SECTION_LISTS = {"models", "pipelines", "stages", "sinks"}
# How a section is written, for "this key belongs there".
_HEADERS = {
    "device": "[device]",
    "streams": "[streams]",
    "scheduler": "[scheduler]",
    "model": "[[models]]",
    "pipeline": "[[pipelines]]",
    "stage": "[[pipelines.stages]]",
    "telemetry": "[telemetry]",
    "otlp": "[telemetry.otlp]",
    "traces": "[telemetry.traces]",
    "log": "[telemetry.log]",
    "metrics": "[telemetry.metrics]",
    "serve": "[serve]",
}


def check_schema(data: Table, problems: ProblemList) -> None:
    """Note what does not fit the schema, and take it out of `data`.

    What is left in `data` has the type the schema says, so that later checks can rely on it;
    keys that are required may be missing.
    """
    misfits = [
        Misfit(
            keyword=str(error.validator),
            wanted=error.validator_value,
            schema=cast(Table, error.schema),
            value=error.instance,
            path=tuple(error.absolute_path),
            message=error.message,
        )
        for error in _VALIDATOR(_SCHEMA).iter_errors(data)
    ]
    for misfit in misfits:
        _SAYS.get(misfit.keyword, _say_expected)(misfit, problems)
    for misfit in misfits:
        _take_out(data, misfit)


# --- what each keyword says ---------------------------------------------------------------------


def _say_unknown_keys(misfit: Misfit, problems: ProblemList) -> None:
    known = misfit.schema["properties"]
    for key in misfit.value.keys() - known.keys():
        problems.add(
            (*misfit.path, key),
            f"unknown key `{key_text(key)}`",
            _key_hint(key, known),
            at_key=True,
        )


def _key_hint(key: str, known: Mapping[str, Any]) -> str:
    elsewhere = [
        header for name, header in _HEADERS.items() if key in _SCHEMA["$defs"][name]["properties"]
    ]
    if nearest(key, known) is None and elsewhere:
        return f"`{key}` belongs to {listed(elsewhere, last='or')}"
    return did_you_mean(key, known, f"keys here are {listed(known)}")


def _say_missing_key(misfit: Misfit, problems: ProblemList) -> None:
    key = misfit.message.split("'")[1]
    if not _is_misspelt(key, misfit):
        problems.add((*misfit.path, key), f"missing key `{key}`", _meaning(misfit.schema, key))


def _is_misspelt(key: str, misfit: Misfit) -> bool:
    """Return whether an unknown key of the same table was probably meant to be this one."""
    known = misfit.schema.get("properties", {})
    return any(nearest(other, known) == key for other in misfit.value.keys() - known.keys())


def _meaning(schema: Table, key: str) -> str:
    if "x-hint" in schema:
        return str(schema["x-hint"])
    part = resolved(_SCHEMA, schema.get("properties", {}).get(key, {}))
    if "enum" in part:
        return f"`{key}` is one of {listed(part['enum'], last='or')}"
    text: str = part.get("description", "")
    return f"add `{key}`: {_as_clause(text)}" if text else ""


def _as_clause(description: str) -> str:
    clause = description.removesuffix(".")
    is_acronym = clause[:2].isalpha() and clause[:2].isupper()
    return clause if is_acronym else clause[0].lower() + clause[1:]


def _say_choice(misfit: Misfit, problems: ProblemList) -> None:
    choices = misfit.wanted
    hint = _alias(misfit)
    if isinstance(misfit.value, str):
        hint = hint or did_you_mean(misfit.value, choices)
    problems.add(
        misfit.path, f"expected {listed(choices, last='or')}, found {found(misfit.value)}", hint
    )


def _alias(misfit: Misfit) -> str:
    """Return the hint for a name that is common elsewhere."""
    aliases: Mapping[str, str] = misfit.schema.get("x-aliases", {})
    alias = aliases.get(misfit.value.lower()) if isinstance(misfit.value, str) else None
    return f"did you mean `{alias}`?" if alias else ""


def _say_constant(misfit: Misfit, problems: ProblemList) -> None:
    is_newer = isinstance(misfit.value, int) and misfit.value > misfit.wanted
    hint = "a newer AegisPipe reads this; this one does not" if is_newer else ""
    what = f"expected {found(misfit.wanted)}, found {found(misfit.value)}"
    problems.add(misfit.path, what, hint)


def _say_either(misfit: Misfit, problems: ProblemList) -> None:
    """Tell about keys of which exactly one, or at least one, has to be there."""
    is_table = isinstance(misfit.value, dict)
    if misfit.schema.get("type") == "object" and not is_table:
        return  # that it is no table is told already
    names = [branch["required"][0] for branch in misfit.wanted if "required" in branch]
    if not names:
        _say_expected(misfit, problems)
        return
    present = [name for name in names if name in misfit.value]
    if present:
        what = f"has both {listed(present)}, but exactly one is needed"
        problems.add((*misfit.path, present[-1]), what, at_key=True)
    elif not any(_is_misspelt(name, misfit) for name in names):
        problems.add(misfit.path, f"has neither {listed(names, last='nor')}", _needs(misfit.schema))


def _needs(schema: Table) -> str:
    return f"add {schema['x-expected']}"


def _say_type(misfit: Misfit, problems: ProblemList) -> None:
    value, unit = misfit.value, misfit.schema.get("x-unit")
    what = f"expected {expectation(misfit.schema)}, found {found(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        problems.add(misfit.path, f"expected a finite number, found {found(value)}")
    elif unit and isinstance(value, int | float) and not isinstance(value, bool):
        hint = f'a {unit} is a string with a unit: "{_with_unit(unit, value)}"'
        problems.add(misfit.path, what, hint)
    elif misfit.wanted == "array" and isinstance(value, dict) and misfit.path[-1] in SECTION_LISTS:
        problems.add(misfit.path, what, f"write each as `[[{path_text(misfit.path)}]]`")
    else:
        _say_expected(misfit, problems)


def _with_unit(unit: str, value: float) -> str:
    """Return the text that was probably meant by a number without unit."""
    if unit == "size" and isinstance(value, int) and value >= 2**20:
        return format_size(value)
    suffix = {"size": " MiB", "duration": " ms", "rate": "/s"}[unit]
    return f"{found(value)}{suffix}"


def _say_expected(misfit: Misfit, problems: ProblemList) -> None:
    schema, value = misfit.schema, misfit.value
    hint = did_you_mean(value, schema.get("x-choices", ())) if isinstance(value, str) else ""
    what = f"expected {expectation(schema)}, found {found(value)}"
    problems.add(misfit.path, what, _alias(misfit) or hint)


def expectation(schema: Table) -> str:
    """Return what the schema wants at a place, as a noun."""
    if "x-expected" in schema:
        return str(schema["x-expected"])
    if "x-unit" in schema:
        return _EXAMPLES[schema["x-unit"]]
    types = schema.get("type", "object")
    return " or ".join(_TYPES[name] for name in ([types] if isinstance(types, str) else types))


def _say_range(misfit: Misfit, problems: ProblemList) -> None:
    low, high = misfit.schema.get("minimum"), misfit.schema.get("maximum")
    if low is not None and high is not None and high < 2**31 - 1:
        allowed = f"from {low} to {high}"
    elif misfit.keyword == "minimum":
        allowed = f"at least {low}"
    else:
        allowed = f"at most {high}"
    problems.add(misfit.path, f"must be {allowed}, found {found(misfit.value)}")


def _say_message(misfit: Misfit, problems: ProblemList) -> None:
    """Tell what a parser said; what stands behind its semicolon says what to do."""
    what, _, hint = misfit.message.partition("; ")
    problems.add(misfit.path, what, hint)


def _say_length(misfit: Misfit, problems: ProblemList) -> None:
    if isinstance(misfit.value, str) or "x-expected" in misfit.schema:
        _say_expected(misfit, problems)
        return
    count, limit = len(misfit.value), misfit.wanted
    if count == 0:
        problems.add(misfit.path, "must not be empty")
    else:
        word = "at least" if misfit.keyword.startswith("min") else "at most"
        problems.add(misfit.path, f"must have {word} {limit} entries, found {count}")


def _say_repeated(misfit: Misfit, problems: ProblemList) -> None:
    repeated = next(v for i, v in enumerate(misfit.value) if v in misfit.value[:i])
    problems.add(misfit.path, f"{found(repeated)} stands in the list twice")


_SAYS: Mapping[str, Says] = {
    "additionalProperties": _say_unknown_keys,
    "required": _say_missing_key,
    "enum": _say_choice,
    "const": _say_constant,
    "oneOf": _say_either,
    "anyOf": _say_either,
    "type": _say_type,
    "minimum": _say_range,
    "maximum": _say_range,
    "x-unit": _say_message,
    "x-minimum": _say_message,
    "x-maximum": _say_message,
    "minLength": _say_length,
    "minItems": _say_length,
    "maxItems": _say_length,
    "minProperties": _say_length,
    "uniqueItems": _say_repeated,
}

# --- taking out what does not fit ---------------------------------------------------------------


def _take_out(data: Table, misfit: Misfit) -> None:
    path = misfit.path
    match misfit.keyword:
        # Without its kind nothing else in a source or sink has been checked, so it all goes.
        case "required" if "kind" in misfit.wanted and "kind" not in misfit.value:
            _remove(data, path)
        case "enum" if path[-1] == "kind" and len(path) > 2:
            _remove(data, path[:-1])
        case "additionalProperties":
            for key in misfit.value.keys() - misfit.schema["properties"].keys():
                _remove(data, (*path, key))
        case "required" | "oneOf" | "minProperties":
            pass  # what is there is good
        case _ if path:
            _remove(data, path)


def _remove(data: Table, path: KeyPath) -> None:
    """Remove a key. Of a list, sections become empty and plain values take the list with them."""
    parent: Any = data
    for part in path[:-1]:
        if isinstance(parent, dict) and part not in parent:
            return  # an earlier problem took it out already
        parent = parent[part]
    if isinstance(parent, dict):
        parent.pop(path[-1], None)
    elif path[-2] in SECTION_LISTS:
        parent[path[-1]] = {}
    else:
        _remove(data, path[:-1])


# --- jsonschema with our keywords ---------------------------------------------------------------


def _check_unit(_: Any, unit: str, value: Any, __: Table) -> Iterator[jsonschema.ValidationError]:
    if isinstance(value, str):
        try:
            _PARSERS[unit](value)
        except ValueError as error:
            yield jsonschema.ValidationError(str(error))


def _parsed(text: Any) -> float | None:
    """Return a size or duration in its base unit; None if it is neither."""
    if isinstance(text, str):
        for parse in (parse_duration, parse_size):
            try:
                return parse(text)
            except ValueError:
                continue
    return None


def _check_least(_: Any, least: str, value: Any, __: Table) -> Iterator[jsonschema.ValidationError]:
    given, bound = _parsed(value), _parsed(least)
    if given is not None and bound is not None and given < bound:
        yield jsonschema.ValidationError(f"must be at least {least}, found {found(value)}")


def _check_most(_: Any, most: str, value: Any, __: Table) -> Iterator[jsonschema.ValidationError]:
    given, bound = _parsed(value), _parsed(most)
    if given is not None and bound is not None and given > bound:
        yield jsonschema.ValidationError(f"must be at most {most}, found {found(value)}")


def _check_pattern(
    validator: Any, pattern: str, value: Any, schema: Table
) -> Iterator[jsonschema.ValidationError]:
    # The patterns of values with units are for editors; our parsers say more.
    if "x-unit" not in schema:
        yield from Draft202012Validator.VALIDATORS["pattern"](validator, pattern, value, schema)


def _is_integer(_: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(_: Any, value: Any) -> bool:
    return _is_integer(_, value) or (isinstance(value, float) and math.isfinite(value))


_SCHEMA = load_schema()
_VALIDATOR = extend(  # type: ignore[no-untyped-call]  # jsonschema's stubs leave it untyped
    Draft202012Validator,
    {
        "x-unit": _check_unit,
        "x-minimum": _check_least,
        "x-maximum": _check_most,
        "pattern": _check_pattern,
    },
    # TOML tells 1 from 1.0, and has numbers that JSON lacks: nan and inf.
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": _is_integer, "number": _is_number}
    ),
)
