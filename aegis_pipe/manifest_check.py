"""A manifest with all its cross-checks: its loader, looking into model files as it goes.

A module of its own, because `aegis-pipe validate` needs nothing else and shall be quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aegis_pipe.execution import model_inspection
from aegis_pipe.manifest import load_manifest
from aegis_pipe.manifest.model import Manifest, ModelFacts, TensorFacts


def check_manifest(path: str | Path) -> Manifest:
    """Load a manifest and look into its models; raises ManifestError with all problems."""
    return load_manifest(path, inspect_model=inspect_model)


def inspect_model(path: Path) -> ModelFacts:
    """Look into a model file without loading its weights; raises what the loader would."""
    facts = model_inspection.inspect_model(path)
    return ModelFacts(
        inputs=_tensor_facts(facts.inputs),
        outputs=_tensor_facts(facts.outputs),
        weight_bytes=facts.weight_bytes,
        operators=facts.operators,
        unknown_operators=facts.unknown_operators,
    )


def _tensor_facts(
    facts: Mapping[str, model_inspection.TensorFacts],
) -> dict[str, TensorFacts]:
    return {name: TensorFacts(tensor.dtype, tensor.shape) for name, tensor in facts.items()}
