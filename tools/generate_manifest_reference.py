"""Write docs/manifest.md from the manifest's schema; `--check` only compares."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aegis_pipe.manifest.schema import load_schema, resolved

PAGE = Path(__file__).parents[1] / "docs" / "manifest.md"

INTRODUCTION = """\
# Manifest reference

This page is generated from `schemas/manifest.schema.json` by
`python tools/generate_manifest_reference.py`.

A manifest is one TOML file. Begin it with `#:schema ../schemas/manifest.schema.json`, and an
editor completes and checks it while you type.

- **Sizes** are strings with a unit: `"512 MiB"` (B, kB, MB, GB, KiB, MiB, GiB).
- **Durations** are strings with a unit: `"20 ms"` (ns, us, ms, s, min, h).
- **Rates** are strings with a unit: `"30/s"` (/h, /min, /s, /ms).
- **Paths** start from the manifest's folder; `package://<import name>/<path>` is a file inside an
  installed Python package.
- **Edges** between stages are written `stage.output`, or `source.output` for the source.
"""

# Section of the schema -> how its header reads in a manifest.
SECTIONS = {
    "device": "`[device]`",
    "streams": "`[streams]`",
    "scheduler": "`[scheduler]`",
    "model": "`[[models]]`",
    "pipeline": "`[[pipelines]]`",
    "images_source": '`[pipelines.source]` with `kind = "images"`',
    "npz_source": '`[pipelines.source]` with `kind = "npz"`',
    "synthetic_source": '`[pipelines.source]` with `kind = "synthetic"`',
    "synthetic_tensor": "`[pipelines.source.outputs.<name>]`",
    "stage": "`[[pipelines.stages]]`",
    "image_to_tensor": '`with` of `transform = "image_to_tensor"`',
    "softmax": '`with` of `transform = "softmax"`',
    "top_k": '`with` of `transform = "top_k"`',
    "argmax": '`with` of `transform = "argmax"`',
    "jsonl_sink": '`[[pipelines.sinks]]` with `kind = "jsonl"`',
    "npz_sink": '`[[pipelines.sinks]]` with `kind = "npz"`',
    "console_sink": '`[[pipelines.sinks]]` with `kind = "console"`',
    "telemetry": "`[telemetry]`",
    "otlp": "`[telemetry.otlp]`",
    "traces": "`[telemetry.traces]`",
    "log": "`[telemetry.log]`",
    "serve": "`[serve]`",
}

TYPES = {"array": "list", "boolean": "bool", "integer": "integer", "object": "table"}


def page(schema: dict[str, Any]) -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, "## Top level\n", *_table(schema, schema)]
    for name, header in SECTIONS.items():
        section = schema["$defs"][name]
        parts += [f"\n## {header}\n", f"{section['description']}\n", *_table(schema, section)]
    return "\n".join(parts) + "\n"


def _table(schema: dict[str, Any], section: dict[str, Any]) -> Iterator[str]:
    yield "| Key | Value | Default | Meaning |"
    yield "| --- | --- | --- | --- |"
    for key, part in section["properties"].items():
        full = resolved(schema, part)
        is_required = key in section.get("required", [])
        cells = [f"`{key}`", _value(full), _default(full, is_required), full["description"]]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _value(part: dict[str, Any]) -> str:
    if "const" in part:
        return f"`{json.dumps(part['const'])}`"
    if "enum" in part:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in part["enum"])
    types = [part["type"]] if isinstance(part["type"], str) else part["type"]
    text = part.get("x-unit") or " or ".join(TYPES.get(name, name) for name in types)
    return text + _range(part)


def _range(part: dict[str, Any]) -> str:
    low = part.get("x-minimum", part.get("minimum"))
    high = part.get("x-maximum", part.get("maximum"))
    if low is not None and high is not None:
        return f", {low} to {high}"
    if low is not None:
        return f", at least {low}"
    return "" if high is None else f", at most {high}"


def _default(part: dict[str, Any], is_required: bool) -> str:
    if is_required:
        return "required"
    if "default" in part:
        return f"`{json.dumps(part['default'])}`"
    return str(part.get("x-default", "left out"))


def main() -> int:
    """Write or compare the page; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is out of date")
    arguments = parser.parse_args()
    text = page(load_schema())
    if not arguments.check:
        PAGE.write_text(text, "utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text("utf-8") == text:
        return 0
    print("docs/manifest.md is out of date: run python tools/generate_manifest_reference.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
