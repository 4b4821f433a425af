"""Check a manifest and the models it names; report every problem at once. Touches no device."""

from __future__ import annotations

import argparse
import dataclasses
import json

from aegis_pipe.cli.tables import counted
from aegis_pipe.errors import ManifestError
from aegis_pipe.manifest_check import check_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the manifest and `--json`."""
    parser.add_argument("manifest", help="path of the TOML file")
    parser.add_argument("--json", action="store_true", help="print problems as JSON")


def run(options: argparse.Namespace) -> int:
    """Print `ok`, or raise the problems (exit status 2)."""
    try:
        manifest = check_manifest(options.manifest)
    except ManifestError as error:
        if not options.json:
            raise
        print(
            json.dumps(
                {"ok": False, "problems": [dataclasses.asdict(p) for p in error.problems]}, indent=2
            )
        )
        return 2
    if options.json:
        print(json.dumps({"ok": True, "problems": []}, indent=2))
    else:
        counts = f"{counted(len(manifest.models), 'model')}, "
        counts += counted(len(manifest.pipelines), "pipeline")
        print(f"{options.manifest}: ok ({counts})")
    return 0
