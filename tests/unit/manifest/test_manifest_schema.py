"""The schema, the sections and the reference page say the same."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from aegis_pipe.manifest import load_schema, model
from aegis_pipe.manifest.conversion import section_fields
from aegis_pipe.manifest.schema import resolved

SCHEMA = load_schema()
ROOT = Path(__file__).parents[3]

SECTIONS: dict[type, dict[str, Any]] = {
    model.Manifest: SCHEMA,
    **{
        section: SCHEMA["$defs"][name]
        for section, name in {
            model.DeviceSection: "device",
            model.StreamsSection: "streams",
            model.SchedulerSection: "scheduler",
            model.ModelSection: "model",
            model.BatchingSection: "batching",
            model.PipelineSection: "pipeline",
            model.ImagesSource: "images_source",
            model.NpzSource: "npz_source",
            model.SyntheticSource: "synthetic_source",
            model.SyntheticTensor: "synthetic_tensor",
            model.StageSection: "stage",
            model.ImageToTensor: "image_to_tensor",
            model.Softmax: "softmax",
            model.TopK: "top_k",
            model.Argmax: "argmax",
            model.JsonlSink: "jsonl_sink",
            model.NpzSink: "npz_sink",
            model.ConsoleSink: "console_sink",
            model.AccuracySink: "accuracy_sink",
            model.TelemetrySection: "telemetry",
            model.OtlpSection: "otlp",
            model.TracesSection: "traces",
            model.LogSection: "log",
            model.MetricsSection: "metrics",
            model.ServeSection: "serve",
        }.items()
    },
}


def test_every_section_is_compared() -> None:
    sections = {
        value
        for value in vars(model).values()
        if dataclasses.is_dataclass(value) and value not in {model.ModelFacts, model.TensorFacts}
    }
    assert sections == set(SECTIONS)


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_keys_and_defaults(section: type) -> None:
    part = SECTIONS[section]
    # The kind is the section's class; `with` holds the fields of the transform's class.
    class_keys = {"kind", "with"} - {field.name for field in section_fields(section)}
    assert {field.key for field in section_fields(section)} == part[
        "properties"
    ].keys() - class_keys
    required = set(part.get("required", ())) - class_keys - {"manifest_version"}
    for field in section_fields(section):
        assert (field.default is dataclasses.MISSING) == (field.key in required), field.key
        if field.key not in required:
            _compare_default(field, resolved(SCHEMA, part["properties"][field.key]))


def _compare_default(field: Any, part: dict[str, Any]) -> None:
    if "default" in part:
        default = part["default"]
        expected = tuple(default) if isinstance(default, list) else default
        value = field.unit.format(field.default) if field.unit else field.default
        assert value == expected, field.key
    elif field.default is not None:
        assert field.default == type(field.default)(), field.key


def test_every_key_is_described_and_has_a_default_or_says_what_leaving_it_out_means() -> None:
    for section, part in SECTIONS.items():
        for key, raw in part["properties"].items():
            full = resolved(SCHEMA, raw)
            assert full["description"].endswith("."), (section, key)
            has_default = {"default", "x-default", "const"} & full.keys()
            is_table = full.get("additionalProperties") is False
            assert has_default or is_table or key in part["required"], (section, key)


def test_no_table_takes_unknown_keys() -> None:
    for section, part in SECTIONS.items():
        assert part["additionalProperties"] is False, section


def test_every_number_has_a_range() -> None:
    unbounded = {"low", "high"}
    for part in SECTIONS.values():
        for key, raw in part["properties"].items():
            full = resolved(SCHEMA, raw)
            if full.get("type") in ("integer", "number") and key not in unbounded:
                assert {"minimum", "maximum"} <= full.keys(), key


def test_the_reference_page_is_up_to_date() -> None:
    command = [sys.executable, "tools/generate_manifest_reference.py", "--check"]
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
