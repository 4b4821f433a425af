"""The manifest's JSON Schema: the one place of meanings, units, ranges and defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_FILE_NAME = "manifest.schema.json"


def schema_path() -> Path:
    """Return the schema's file: in the installed package, or in the source tree."""
    package = Path(__file__).parents[1]
    installed = package / "_schemas" / _FILE_NAME
    return installed if installed.exists() else package.parent / "schemas" / _FILE_NAME


def load_schema() -> dict[str, Any]:
    """Return the manifest's schema (JSON Schema, draft 2020-12)."""
    schema: dict[str, Any] = json.loads(schema_path().read_text("utf-8"))
    return schema


def resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return a part of the schema with its `$ref` merged in; its own keywords come first."""
    if "$ref" not in part:
        return part
    target = schema["$defs"][part["$ref"].removeprefix("#/$defs/")]
    return {**target, **{key: value for key, value in part.items() if key != "$ref"}}


@cache
def meaning_of(path: tuple[str | int, ...]) -> str:
    """Return what the key at a path means: "`deadline`: time until the result is due".

    For an element of a list, or a name of the user's own, the nearest key around it; empty for
    the file as a whole.
    """
    schema = load_schema()
    key, text, parts = "", "", [schema]
    for step in path:
        parts = [found for part in parts for found in _steps(schema, part, step)]
        described = next((part["description"] for part in parts if "description" in part), "")
        if isinstance(step, str) and described:
            key, text = step, described
    return f"`{key}`: {text[0].lower()}{text[1:].rstrip('.')}" if text else ""


def _steps(
    schema: dict[str, Any], part: dict[str, Any], step: str | int
) -> Iterator[dict[str, Any]]:
    """Yield the parts of the schema that may hold for a key or element of a part."""
    if isinstance(step, int):
        inner: Sequence[Any] = [part.get("items")]
    else:
        branches = [resolved(schema, branch["then"]) for branch in part.get("allOf", ())]
        inner = [each.get("properties", {}).get(step) for each in (part, *branches)]
    yield from (resolved(schema, each) for each in inner if isinstance(each, dict))
