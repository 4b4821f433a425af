"""Print the JSON Schema of manifests, for editors and other tools."""

from __future__ import annotations

import argparse
import json

from aegis_pipe.manifest.schema import load_schema


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


def run(options: argparse.Namespace) -> int:
    """Print the schema."""
    print(json.dumps(load_schema(), indent=2, ensure_ascii=False))
    return 0
