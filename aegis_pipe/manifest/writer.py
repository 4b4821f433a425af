"""Writes a manifest back as TOML."""

from __future__ import annotations

import tomli_w

from aegis_pipe.manifest.conversion import manifest_to_table
from aegis_pipe.manifest.model import Manifest
from aegis_pipe.manifest.schema import load_schema

SCHEMA_LINE = "#:schema ../schemas/manifest.schema.json"


def dump_manifest(manifest: Manifest) -> str:
    """Return the manifest as TOML text that loads back to the same value.

    Keys that have their default are left out. Paths stay as they were written, so the text
    belongs in the folder that the manifest came from.
    """
    table = manifest_to_table(manifest)
    ordered = {key: table[key] for key in load_schema()["properties"] if key in table}
    return f"{SCHEMA_LINE}\n{tomli_w.dumps(ordered)}"
