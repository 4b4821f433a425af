"""Predicts a manifest's latencies and misses on virtual time, from its profile."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from aegis_pipe.analysis.profile import Profile
from aegis_pipe.analysis.simulation import Loads, Prediction, Tally, run
from aegis_pipe.analysis_builder import (
    drawn_arrivals,
    loads_of,
    needed_ns_of,
    segments_of,
    times_of,
)
from aegis_pipe.errors import ManifestError
from aegis_pipe.manifest.conversion import manifest_from_table, manifest_to_table
from aegis_pipe.manifest.locator import locate
from aegis_pipe.manifest.model import Manifest
from aegis_pipe.manifest.problems import ProblemList
from aegis_pipe.manifest.validation import check_schema
from aegis_pipe.pipeline_builder import arrivals_of
from aegis_pipe.scheduler_builder import make_scheduler
from aegis_pipe.scheduling.decision import Decision, format_decision

STRETCH_NS = 300 * 10**9
"""A long run is made of independent stretches of this length, each beginning idle: they run in
parallel, and their number does not depend on the machine."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a simulated run predicts."""

    manifest: Manifest
    duration_ns: int
    requests: int
    predictions: tuple[Prediction, ...]
    journal: str
    """SHA-256 over all decisions, stretch by stretch; empty unless asked for."""


def simulate(
    manifest: Manifest, profile: Profile, duration_ns: int, seed: int, *, journal: bool = False
) -> Simulation:
    """Run a manifest's load through its scheduler on virtual time."""
    return simulate_each([manifest], profile, duration_ns, seed, journal=journal)[0]


def simulate_each(
    manifests: Sequence[Manifest],
    profile: Profile,
    duration_ns: int,
    seed: int,
    *,
    journal: bool = False,
) -> list[Simulation]:
    """Do the same for several variants, all of whose stretches run in parallel."""
    lengths = [
        min(STRETCH_NS, duration_ns - start_ns) for start_ns in range(0, duration_ns, STRETCH_NS)
    ]
    parts = _run_all(
        [
            _Job(manifest, profile, length_ns, _seed(seed, number), journal)
            for manifest in manifests
            for number, length_ns in enumerate(lengths)
        ]
    )
    return [
        _together(manifest, duration_ns, itertools.islice(parts, len(lengths)), journal)
        for manifest in manifests
    ]


def _together(
    manifest: Manifest, duration_ns: int, parts: Iterable[tuple[Tally, bytes]], journal: bool
) -> Simulation:
    tally, digest = Tally([model.name for model in manifest.models]), hashlib.sha256()
    for part, part_digest in parts:
        tally.add(part)
        digest.update(part_digest)
    predictions = tally.predictions()
    return Simulation(
        manifest,
        duration_ns,
        sum(prediction.submitted for prediction in predictions),
        predictions,
        digest.hexdigest() if journal else "",
    )


def simulate_again(
    manifests: Sequence[Manifest], profile: Profile, duration_ns: int, seed: int
) -> Tally:
    """Return what becomes of the very items that runs of the same models' manifests had.

    They arrive when each manifest's sources say; nothing is drawn but times. So real runs can be
    held against it without the chance of arrivals.
    """
    tally = Tally([model.name for model in manifests[0].models])
    for number, manifest in enumerate(manifests):
        part, _ = _run_one(
            _Job(manifest, profile, duration_ns, _seed(seed, number), arrives_as_declared=True)
        )
        tally.add(part)
    return tally


@dataclass(frozen=True, slots=True)
class _Job:
    manifest: Manifest
    profile: Profile
    length_ns: int
    seed: int
    journal: bool = False
    arrives_as_declared: bool = False


def _seed(seed: int, number: int) -> int:
    return seed * 1_000_003 + number * 7919


def _run_all(jobs: Sequence[_Job]) -> Iterator[tuple[Tally, bytes]]:
    workers = min(len(jobs), os.cpu_count() or 1)
    if workers < 2:
        yield from map(_run_one, jobs)
        return
    # Spawned, not forked: whoever calls may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_run_one, jobs)


def _run_one(job: _Job) -> tuple[Tally, bytes]:
    manifest, profile = job.manifest, job.profile
    arrivals = arrivals_of if job.arrives_as_declared else drawn_arrivals(manifest, job.seed)
    tally, digest = Tally([model.name for model in manifest.models]), hashlib.sha256()

    def keep(decisions: tuple[Decision, ...]) -> None:
        for decision in decisions:
            digest.update(format_decision(decision).encode() + b"\n")

    run(
        make_scheduler(
            manifest,
            segments_of(manifest, profile),
            needed_ns=needed_ns_of(manifest, profile),
            explains=job.journal,
        ),
        Loads(loads_of(manifest, profile, arrivals), job.seed),
        times_of(manifest, profile, job.seed + 1),
        until_ns=job.length_ns,
        on_decisions=keep if job.journal else None,
        on_finished=tally,
    )
    return tally, digest.digest()


def with_settings(manifest: Manifest, settings: Sequence[str]) -> Manifest:
    """Return the manifest with `key=value` settings applied, checked as a file would be.

    Keys are paths with dots: `scheduler.policy=edf`, `models.detector.priority=3`,
    `pipelines.camera.source.rate=60/s`; entries of lists are named, or numbered from 0.
    """
    table = manifest_to_table(manifest)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ManifestError(f"`{setting}` is not of the form key=value", context="--set")
        _set(table, key.strip().split("."), text.strip(), setting)
    problems = ProblemList("--set", "", locate(""))
    check_schema(table, problems)
    problems.raise_if_any()
    return manifest_from_table(table, manifest.directory, manifest.stem)


def _set(table: Any, path: Sequence[str], text: str, setting: str) -> None:
    for step in path[:-1]:
        table = (
            table.setdefault(step, {}) if isinstance(table, dict) else _entry(table, step, setting)
        )
    if not isinstance(table, dict):
        raise ManifestError(f"`{setting}` ends at a list", context="--set")
    table[path[-1]] = _value(text)


def _entry(entries: list[Any], step: str, setting: str) -> Any:
    for number, entry in enumerate(entries):
        if isinstance(entry, dict) and step in (entry.get("name"), str(number)):
            return entry
    names = ", ".join(f"`{entry['name']}`" for entry in entries if "name" in entry)
    raise ManifestError(
        f"`{setting}`: there is no `{step}`", context="--set", hint=f"there are {names}"
    )


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def sweep(manifest: Manifest) -> list[Manifest]:
    """Return variants over the number of streams, the policy and the length of segments."""
    count, block_ns = manifest.streams.count, manifest.streams.max_block_ns
    confined = max((stream for model in manifest.models for stream in model.streams), default=0)
    choices = itertools.product(
        sorted({streams for streams in (1, count, count + 1) if streams > confined}),
        dict.fromkeys((manifest.scheduler.policy, "fifo", "priority", "edf", "fairness")),
        (block_ns // 4, block_ns, block_ns * 4),
    )
    return [
        dataclasses.replace(
            manifest,
            streams=dataclasses.replace(manifest.streams, count=streams, max_block_ns=max_block_ns),
            scheduler=dataclasses.replace(manifest.scheduler, policy=policy),
        )
        for streams, policy, max_block_ns in choices
    ]
