"""The manifest: one TOML file that says everything; plain data that imports no layer."""

from aegis_pipe.errors import ManifestError, Problem
from aegis_pipe.manifest.loader import load_manifest
from aegis_pipe.manifest.model import Manifest, ModelFacts, TensorFacts
from aegis_pipe.manifest.schema import load_schema
from aegis_pipe.manifest.writer import dump_manifest

__all__ = [
    "Manifest",
    "ManifestError",
    "ModelFacts",
    "Problem",
    "TensorFacts",
    "dump_manifest",
    "load_manifest",
    "load_schema",
]
