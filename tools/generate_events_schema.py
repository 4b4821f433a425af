"""Write schemas/events.schema.json, the JSON Schema of the log's lines, from `events.py`.

    python tools/generate_events_schema.py

One line of `telemetry.log` is one object; `event` tells its kind.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any, get_args

from aegis_pipe import events
from aegis_pipe.telemetry.json_log import NONE_IF_ZERO, event_name

ROOT = Path(__file__).parent.parent
PATH = ROOT / "schemas" / "events.schema.json"
_fields = runpy.run_path(str(ROOT / "tools" / "generate_telemetry_docs.py"))["_fields"]

_INSTANT = {"$ref": "#/$defs/instant"}
_REQUEST = {"$ref": "#/$defs/request"}
_SCALARS: dict[str, dict[str, Any]] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
    "bool": {"type": "boolean"},
}
_SPECIAL: dict[str, dict[str, Any]] = {
    "request_id": _REQUEST,
    "blocked_by": {"type": "array", "items": _REQUEST},
    "candidates": {
        "type": "array",
        "items": {
            "type": "array",
            "prefixItems": [_REQUEST, {"$ref": "#/$defs/number"}],
            "minItems": 2,
            "maxItems": 2,
        },
    },
    "kernel_times": {
        "type": "array",
        "items": {"type": "array", "prefixItems": [_INSTANT, _INSTANT], "minItems": 2},
    },
    "kernels": {
        "type": "array",
        "items": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 3},
        },
    },
    **{
        f"models_{what}": {"type": "array", "items": {"type": "string"}}
        for what in ("added", "removed", "reloaded", "kept")
    },
    "attributes": {
        "type": "object",
        "additionalProperties": {"type": ["string", "number", "boolean"]},
    },
}
"""Fields whose form in the log is not that of their type."""


def render() -> str:
    """Return the schema."""
    kinds = get_args(events.Event)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "AegisPipe event",
        "description": "One line of the log that `telemetry.log` names. Generated: "
        "tools/generate_events_schema.py.",
        "type": "object",
        "required": ["event", "timestamp"],
        "oneOf": [{"$ref": f"#/$defs/{event_name(kind)}"} for kind in kinds],
        "$defs": {
            "instant": {"description": "Nanoseconds since the Unix epoch.", "type": "integer"},
            "request": {"description": "A request.", "type": "string", "pattern": "^req-[0-9]+$"},
            "stream": {"description": "A stream.", "type": "string", "pattern": "^stream-[0-9]+$"},
            "number": {
                "description": "A number, or the name of one that JSON has none for.",
                "anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}],
            },
            **{event_name(kind): _event(kind) for kind in kinds},
        },
    }
    return json.dumps(schema, indent=2) + "\n"


def _event(kind: type) -> dict[str, Any]:
    properties: dict[str, Any] = {"event": {"const": event_name(kind)}}
    for field, of_type, text in _fields(kind):
        if field == "at_ns":
            continue
        name, schema = _field(field, of_type)
        if (kind, field) in NONE_IF_ZERO or schema.get("$ref") == "#/$defs/stream":
            schema = {"anyOf": [schema, {"type": "null"}]}
        words = " ".join(text.split())
        properties[name] = {"description": words, **schema} if words else schema
    if kind is events.DecisionMade:
        properties["priority"] = {
            "description": "Of the request; null if its submission is not in the log.",
            "type": ["integer", "null"],
        }
    properties["timestamp"] = _INSTANT
    return {
        "description": " ".join((kind.__doc__ or "").split()),
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _field(field: str, of_type: str) -> tuple[str, dict[str, Any]]:
    """Return a field's name and form in the log."""
    if field in _SPECIAL:
        return field, _SPECIAL[field]
    if field.endswith("_ns"):
        return field, _INSTANT
    if field == "stream" or field.endswith("_stream"):
        return f"{field}_id", {"$ref": "#/$defs/stream"}
    return field, _SCALARS[of_type]


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
