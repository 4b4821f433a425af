"""Write a manifest for an ONNX model, ready for `validate`, `plan` and `up`."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
from pathlib import Path

from aegis_pipe.errors import PermanentError
from aegis_pipe.manifest.model import (
    DeviceSection,
    Manifest,
    ModelFacts,
    ModelSection,
    PipelineSection,
    StageSection,
    SyntheticSource,
)
from aegis_pipe.manifest.writer import dump_manifest
from aegis_pipe.manifest_check import inspect_model
from aegis_pipe.output_file import replace_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the model, the target and `--force`."""
    parser.add_argument("model", type=Path, help="path of the ONNX file")
    parser.add_argument(
        "-o", "--output", type=Path, help="file to write; default: the model's name with .toml"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(options: argparse.Namespace) -> int:
    """Write the file and say what to look at in it."""
    target: Path = options.output or Path(options.model.stem + ".toml")
    if target.exists() and not options.force:
        raise PermanentError(
            f"`{target}` exists already", hint="name another file with -o, or add --force"
        )
    facts = inspect_model(options.model)
    shapes, open_dimensions = chosen_shapes(facts)
    manifest = draft(options.model, target, shapes)
    replace_file(target, dump_manifest(manifest, schema_line=""))
    print(f"wrote {target}; next: aegis-pipe up {shlex.quote(str(target))} --for 5s")
    for dimension in open_dimensions:
        print(f"  look at `shapes`: {dimension}")
    return 0


def chosen_shapes(facts: ModelFacts) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Choose 1 for every open dimension; return the shapes and a line for each choice."""
    shapes: dict[str, tuple[int, ...]] = {}
    choices = []
    for name, tensor in facts.inputs.items():
        if all(isinstance(size, int) for size in tensor.shape):
            continue
        shapes[name] = tuple(size if isinstance(size, int) else 1 for size in tensor.shape)
        unknown = [str(size or "?") for size in tensor.shape if not isinstance(size, int)]
        choices.append(f"`{name}` has open dimensions ({', '.join(unknown)}), set to 1")
    return shapes, choices


def name_of(model: Path) -> str:
    """Return a name as manifests have them that is close to the file's."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", model.stem).strip("-")[:100]
    return name if re.match(r"[A-Za-z_]", name) else f"model-{name}".rstrip("-")


def draft(model: Path, target: Path, shapes: dict[str, tuple[int, ...]]) -> Manifest:
    """Return a manifest with the model, pinned by digest, and a synthetic load for it."""
    name = name_of(model)
    return Manifest(
        name=name,
        device=DeviceSection(kind="cpu"),
        models=(
            ModelSection(
                name=name,
                path=os.path.relpath(model, target.parent),
                sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
                shapes=shapes,
            ),
        ),
        pipelines=(
            PipelineSection(
                name="load",
                source=SyntheticSource(like=name, rate_per_s=10.0),
                stages=(StageSection(name="infer", model=name),),
            ),
        ),
    )
