"""`tools/jaeger`: that the compose file and Jaeger's own settings speak of the same things."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "tools" / "jaeger"
COMPOSE = shutil.which("docker-compose")

yaml = pytest.importorskip("yaml", reason="no PyYAML here")


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def test_jaeger_reads_the_files_and_listens_on_the_ports_that_compose_brings_it() -> None:
    service = read("docker-compose.yml")["services"]["jaeger"]
    config = read("config.yaml")
    mounted = {}
    for volume in service["volumes"]:
        source, target, mode = volume.split(":")
        assert (FOLDER / source).is_file()
        assert mode == "ro"
        mounted[target] = Path(source).name
    assert mounted[service["command"][service["command"].index("--config") + 1]] == "config.yaml"
    query = config["extensions"]["jaeger_query"]
    assert mounted[query["ui"]["config_file"]] == "ui.json"
    otlp = config["receivers"]["otlp"]["protocols"]
    # In a container, loopback is the container's own.
    hosts, ports = zip(
        *(place["endpoint"].split(":") for place in (query["http"], otlp["grpc"], otlp["http"])),
        strict=True,
    )
    assert set(hosts) == {"0.0.0.0"}
    published = [port.split(":") for port in service["ports"]]
    assert {host for host, _, _ in published} == {"127.0.0.1"}
    assert {outside for _, outside, _ in published} == set(ports)
    assert {inside for _, _, inside in published} == set(ports)


def test_jaegers_pipeline_is_made_of_parts_that_are_there() -> None:
    config = read("config.yaml")
    assert set(config["service"]["extensions"]) == config["extensions"].keys()
    (pipeline,) = config["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert set(pipeline[kind]) == config[kind].keys()
    backends = config["extensions"]["jaeger_storage"]["backends"].keys()
    assert config["extensions"]["jaeger_query"]["storage"]["traces"] in backends
    assert config["exporters"]["jaeger_storage_exporter"]["trace_storage"] in backends


def test_the_ui_is_told_nothing_that_it_does_not_know() -> None:
    settings = json.loads((FOLDER / "ui.json").read_text(encoding="utf-8"))
    assert settings.keys() == {"topTagPrefixes", "linkPatterns"}
    for pattern in settings["linkPatterns"]:
        assert pattern.keys() <= {"type", "key", "value", "url", "text"}
        assert pattern["type"] in ("process", "tags", "logs", "traces")


@pytest.mark.skipif(COMPOSE is None, reason="no docker-compose on this machine")
def test_docker_compose_takes_the_file() -> None:
    command = [str(COMPOSE), "-f", str(FOLDER / "docker-compose.yml"), "config"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "jaegertracing/jaeger:" in run.stdout
