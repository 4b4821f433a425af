"""Checks of what a run writes and listens on: that it can, and that nothing read is replaced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from aegis_pipe.errors import ManifestError
from aegis_pipe.manifest.checks import Checker
from aegis_pipe.manifest.locator import KeyPath
from aegis_pipe.manifest.model import resolve_path
from aegis_pipe.manifest.problems import found


def check_outputs(checker: Checker) -> None:
    """Note what can not be written or listened on, or would replace what is read."""
    _check_outputs(checker)
    _check_addresses(checker)


def _check_outputs(checker: Checker) -> None:
    """Check that what is written can be written, by one writer only, and is not read."""
    first: dict[Path, KeyPath] = {}
    read = _read(checker)
    for path, text, is_folder in _written(checker):
        place = checker.resolve(path, text)
        if place is None:
            continue
        place = Path(os.path.realpath(place))
        earlier = first.setdefault(place, path)
        if earlier != path:
            line = checker.problems.line_of(earlier)
            what = f"{found(text)} is written by two, the other one on line {line}"
            checker.problems.add(path, what, "give each a path of its own")
        elif place in read and place.is_dir() == is_folder:
            what = f"{found(text)} is {read[place]}, which would be replaced"
            checker.problems.add(path, what, "give what is written a path of its own")
        else:
            _check_writable(checker, path, text, place, is_folder=is_folder)


def _read(checker: Checker) -> dict[Path, str]:
    """Return the places that are read, and what they are."""
    texts = {f"the file of model `{m.get('name')}`": m.get("path") for m in checker.models}
    for pipeline in checker.pipelines:
        source = pipeline.get("source", {})
        texts[f"the source of pipeline `{pipeline.get('name')}`"] = source.get("path")
    places = {os.path.realpath(checker.problems.file): "the manifest itself"}
    for what, text in texts.items():
        with contextlib.suppress(ManifestError):
            if text is not None:
                places[os.path.realpath(resolve_path(text, checker.directory))] = what
    return {Path(place): what for place, what in places.items()}


def _written(checker: Checker) -> Iterable[tuple[KeyPath, str, bool]]:
    for i, pipeline in enumerate(checker.pipelines):
        for j, sink in enumerate(pipeline.get("sinks", [])):
            if "path" in sink:
                is_folder = sink.get("kind") == "npz"
                yield ("pipelines", i, "sinks", j, "path"), sink["path"], is_folder
    telemetry = checker.root.get("telemetry", {})
    if "file" in telemetry:
        yield ("telemetry", "file"), telemetry["file"], False
    if "path" in telemetry.get("log", {}):
        yield ("telemetry", "log", "path"), telemetry["log"]["path"], False


def _check_writable(
    checker: Checker, path: KeyPath, text: str, place: Path, *, is_folder: bool
) -> None:
    if place.is_dir() and not is_folder:
        checker.problems.add(path, f"{found(text)} is a folder", "name a file to write to")
        return
    if place.exists() and not place.is_dir() and is_folder:
        checker.problems.add(path, f"{found(text)} is a file", "name a folder to write to")
        return
    existing = next(parent for parent in (place, *place.parents) if parent.exists())
    if existing != place and not existing.is_dir():
        what = f"`{existing.name}` is a file, so no folder can be made there"
        checker.problems.add(path, what, "choose a path whose folders are folders")
    elif not os.access(existing, os.W_OK):
        checker.problems.add(
            path, f"{found(text)} can not be written", "check the permissions of its folder"
        )


def _check_addresses(checker: Checker) -> None:
    serve = checker.root.get("serve", {})
    metrics = checker.root.get("telemetry", {}).get("metrics", {})
    addresses: dict[KeyPath, str] = {("serve", key): text for key, text in serve.items()}
    if "prometheus" in metrics:
        addresses["telemetry", "metrics", "prometheus"] = metrics["prometheus"]
    for path, address in addresses.items():
        port = int(address.rpartition(":")[2])
        if port > 65535:
            checker.problems.add(path, f"a port is at most 65535, found {port}")
    if len(set(serve.values())) < len(serve):
        what = "HTTP and gRPC can not listen on the same address"
        checker.problems.add(("serve", "grpc"), what, "give gRPC a port of its own")
