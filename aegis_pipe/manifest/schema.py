"""The manifest's JSON Schema: the one place of meanings, units, ranges and defaults."""

from __future__ import annotations

import json
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
