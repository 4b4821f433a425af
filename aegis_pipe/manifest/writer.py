"""Writes a manifest back as TOML."""

from __future__ import annotations

import re

import tomli_w

from aegis_pipe.manifest.conversion import manifest_to_table
from aegis_pipe.manifest.model import Manifest
from aegis_pipe.manifest.schema import load_schema

SCHEMA_LINE = "#:schema ../schemas/manifest.schema.json"
_LINE_WIDTH = 100
# Strings are written with their newlines escaped, so this can not match inside one.
_INNERMOST_LIST = re.compile(r"\[\n((?: +[^\n]*,\n)+) *\]")


def dump_manifest(manifest: Manifest, *, schema_line: str = SCHEMA_LINE) -> str:
    """Return the manifest as TOML text that loads back to the same value.

    The first line tells editors where the schema is; empty for none. Keys that have their
    default are left out. Paths stay as they were written, so the text belongs in the folder that
    the manifest came from.
    """
    table = manifest_to_table(manifest)
    ordered = {key: table[key] for key in load_schema()["properties"] if key in table}
    head = f"{schema_line}\n" if schema_line else ""
    return head + _INNERMOST_LIST.sub(_on_one_line, tomli_w.dumps(ordered))


def _on_one_line(match: re.Match[str]) -> str:
    line = f"[{', '.join(item.strip()[:-1] for item in match[1].splitlines())}]"
    return line if len(line) <= _LINE_WIDTH else match[0]
