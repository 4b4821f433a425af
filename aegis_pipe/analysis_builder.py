"""From a manifest and its profile to what is analysed: task set, loads, times; and admission."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aegis_pipe.analysis import simulation
from aegis_pipe.analysis.certificate import Certificate, Verdict, certify
from aegis_pipe.analysis.execution_times import MeasuredTimes, ModelTimes
from aegis_pipe.analysis.in_place import in_place_times
from aegis_pipe.analysis.profile import Fingerprint, Profile, read_profile
from aegis_pipe.analysis.promises import AdmissionOutcome, promises_kept
from aegis_pipe.analysis.simulation import Load, StageLoad
from aegis_pipe.analysis.task_set import Task, TaskSet
from aegis_pipe.device.protocols import DeviceDescription
from aegis_pipe.errors import PermanentError
from aegis_pipe.events import Phase, PhaseRecorder
from aegis_pipe.execution.compiler import CompiledModel
from aegis_pipe.execution.segments import cost_model
from aegis_pipe.manifest.model import Manifest, ModelSection, PipelineSection
from aegis_pipe.scheduler_builder import arena_groups, variants_of
from aegis_pipe.scheduling.statistics import ModelStatistics
from aegis_pipe.version import __version__

PROFILE_ENDING = ".profile.json"


def fingerprint_of(manifest: Manifest, device: DeviceDescription) -> Fingerprint:
    """Return what a profile of this manifest on this device depends on."""
    return Fingerprint(
        models={section.name: _model_digest(manifest, section) for section in manifest.models},
        device=f"{device.name}: {device.model}, {device.compute_units} units{_shares(manifest)}",
        libraries=dict(device.library_versions),
        stream_count=manifest.streams.count,
        threads=manifest.streams.threads,
        max_block_ns=manifest.streams.max_block_ns,
        version=__version__,
        real_time=manifest.streams.real_time,
    )


def _shares(manifest: Manifest) -> str:
    """Say how streams share the device, if not all of them all of it."""
    shares = manifest.streams.sm
    return f" as {' + '.join(map(str, shares))}" if shares else ""


def _model_digest(manifest: Manifest, section: ModelSection) -> str:
    with manifest.resolve(section.path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    shapes = sorted((name, tuple(shape)) for name, shape in section.shapes.items())
    return f"{digest} {section.precision} {shapes} {sorted(section.bind.items())}"


def load_profile(manifest: Manifest) -> Profile:
    """Read the profile beside a manifest; raises PermanentError if there is none, or a bad one."""
    path = manifest.beside(PROFILE_ENDING)
    if not path.is_file():
        raise PermanentError(
            "there is no profile of this manifest's models",
            context=str(path),
            hint=f"measure one with `aegis-pipe profile {manifest.beside('.toml')}`",
        )
    profile = read_profile(_profile_text(path), str(path))
    missing = [model.name for model in manifest.models if model.name not in profile.models]
    if missing:
        raise PermanentError(
            f"the profile lacks model `{missing[0]}`",
            context=str(path),
            hint="measure it anew with `aegis-pipe profile`",
        )
    return profile


def _profile_text(path: Path) -> str:
    try:
        # What is no text is no JSON either, and told as that.
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise PermanentError(
            f"it can not be read: {error.strerror}",
            context=str(path),
            hint="check its permissions, or measure it anew with `aegis-pipe profile`",
        ) from error


# --- what is to be proven -----------------------------------------------------------------------


def task_set_of(manifest: Manifest, profile: Profile) -> TaskSet:
    """Return every model's requests as tasks: pipelines' stages, and models that callers use."""
    groups = arena_groups(manifest)
    tasks = [
        _stage_task(manifest, profile, groups, pipeline, stage)
        for pipeline in manifest.pipelines
        for stage in _model_stages(pipeline)
    ]
    fed = {task.model for task in tasks}
    tasks += [
        _task(manifest, profile, groups, section, section.name, section.name)
        for section in manifest.models
        if section.name not in fed
    ]
    return TaskSet(
        tuple(tasks),
        manifest.scheduler.policy,
        manifest.scheduler.ageing_ns if manifest.scheduler.policy == "priority" else 0,
        manifest.streams.count,
    )


def _task(
    manifest: Manifest,
    profile: Profile,
    groups: Mapping[str, int],
    section: ModelSection,
    name: str,
    source: str,
) -> Task:
    return Task(
        name=name,
        model=section.name,
        source=source,
        segments_ns=profile.segments_ns(section.name),
        total_ns=profile.total_ns(section.name),
        period_ns=section.period_ns,
        deadline_ns=section.deadline_ns,
        priority=section.priority,
        wake_ns=profile.models[section.name].wake.bound_ns,
        memory=groups[section.name],
        streams=frozenset(section.streams or range(manifest.streams.count)),
    )


def _stage_task(
    manifest: Manifest,
    profile: Profile,
    groups: Mapping[str, int],
    pipeline: PipelineSection,
    stage: _ModelStage,
) -> Task:
    section = manifest.model(stage.model)
    plain = _task(
        manifest, profile, groups, section, f"{pipeline.name}/{stage.name}", pipeline.name
    )
    has_end = pipeline.deadline_ns is not None
    host_ns = max(_host_times(profile, pipeline, stage), default=0)
    return Task(
        name=plain.name,
        model=plain.model,
        source=pipeline.name,
        segments_ns=plain.segments_ns,
        total_ns=plain.total_ns,
        period_ns=_shortest_period_ns(pipeline),
        deadline_ns=pipeline.deadline_ns if has_end else section.deadline_ns,
        priority=section.priority if pipeline.priority is None else pipeline.priority,
        before=tuple(f"{pipeline.name}/{name}" for name in stage.after),
        is_from_origin=has_end,
        host_ns=host_ns,
        wake_ns=plain.wake_ns,
        memory=plain.memory,
        streams=plain.streams,
    )


def _shortest_period_ns(pipeline: PipelineSection) -> int | None:
    """Return the distance of a pipeline's items; None where they can come at any distance."""
    source = pipeline.source
    if source.rate_per_s is None or getattr(source, "arrivals", "periodic") != "periodic":
        return None
    return round(1e9 / source.rate_per_s)


@dataclass(frozen=True, slots=True)
class _ModelStage:
    name: str
    model: str
    after: tuple[str, ...]
    """Model stages whose results it needs, through transforms or directly."""
    transforms: tuple[str, ...]
    """What runs on the host before it: the source, if it waits for no model, and transforms."""


def _model_stages(pipeline: PipelineSection) -> list[_ModelStage]:
    by_name = {stage.name: (index, stage) for index, stage in enumerate(pipeline.stages)}

    def reads(name: str) -> list[str]:
        index, stage = by_name[name]
        if stage.inputs:
            return [value.partition(".")[0] for value in stage.inputs.values()]
        return [pipeline.stages[index - 1].name if index else "source"]

    def behind(name: str) -> tuple[set[str], list[str]]:
        models: set[str] = set()
        hosts: list[str] = []
        for other in reads(name):
            if other == "source":
                hosts.append("source")
            elif by_name[other][1].model is not None:
                models.add(other)
            else:
                more_models, more_hosts = behind(other)
                models |= more_models
                hosts += [*more_hosts, other]
        return models, hosts

    stages = []
    for stage in pipeline.stages:
        if stage.model is not None:
            models, hosts = behind(stage.name)
            stages.append(
                _ModelStage(
                    stage.name,
                    stage.model,
                    tuple(each.name for each in pipeline.stages if each.name in models),
                    tuple(dict.fromkeys(hosts)),
                )
            )
    return stages


def _host_times(profile: Profile, pipeline: PipelineSection, stage: _ModelStage) -> Sequence[int]:
    """Return the distribution of host time before a stage: rank by rank, the parts added up."""
    parts = [profile.host_ns.get(f"{pipeline.name}/{name}", ()) for name in stage.transforms]
    parts = [part for part in parts if part]
    if not parts:
        return ()
    points = min(map(len, parts))
    return [
        sum(part[(rank + 1) * len(part) // points - 1] for part in parts) for rank in range(points)
    ]


# --- admission ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admission:
    """What is known about a manifest's promises before it runs."""

    certificate: Certificate | None
    """None if there is nothing to prove it from."""
    profile: Profile | None
    problem: str = ""
    """Why there is no certificate."""
    hint: str = ""
    is_void: bool = False
    """Whether the profile was measured under other conditions."""

    @property
    def valid_profile(self) -> Profile | None:
        """The profile, if what it says holds."""
        return None if self.is_void else self.profile

    @property
    def is_proven(self) -> bool:
        """Whether every promise is kept."""
        return self.certificate is not None and self.certificate.is_proven


def needed_ns_of(manifest: Manifest, profile: Profile) -> dict[str, int]:
    """Return what models are known to need from start to result, for early refusals.

    Of a model the shortest time measured, so that nothing is refused that could be in time; of a
    batch's variant the longest of its model times its size, so that nobody is late for company.
    """
    shortest_ns = {name: model.totals_ns[0] for name, model in profile.models.items()}
    for hold in profile.in_place:
        shortest_ns[hold.model] = min(shortest_ns[hold.model], hold.total_ns)
    return shortest_ns | {
        each.name: each.size * profile.total_ns(each.model) for each in variants_of(manifest)
    }


@dataclass(frozen=True, slots=True)
class SegmentCuts:
    """Where models are cut into segments; the same in every process that loads the manifest."""

    boundaries: Mapping[str, tuple[int, ...]]
    """The launched steps at which each model's segments begin, but for the first."""
    from_profile: frozenset[str]
    """Models cut as they were when they were measured; all others by the cost model."""

    def origin(self, model: str) -> str:
        """Return what a model's cuts come from."""
        return "profile" if model in self.from_profile else "cost model"


def cut_segments(
    manifest: Manifest,
    models: Sequence[CompiledModel],
    profile: Profile | None,
    device: DeviceDescription,
) -> SegmentCuts:
    """Cut models (and variants) as the profile has them; what it lacks, by the cost model.

    Raises PermanentError for a profile of other kernels.
    """
    measured = {} if profile is None else profile.models
    costs, boundaries = cost_model(device), {}
    for model in models:
        if model.name not in measured:
            boundaries[model.name] = costs.cuts(model, manifest.streams.max_block_ns)
            continue
        launched = sum(step.is_launched for step in model.steps)
        if len(measured[model.name].kernels_ns) != launched:
            raise PermanentError(
                f"the profile is of {len(measured[model.name].kernels_ns)} kernels, "
                f"and there are {launched}",
                context=f"model `{model.name}`",
                hint="measure it anew with `aegis-pipe profile`",
            )
        boundaries[model.name] = measured[model.name].boundaries
    return SegmentCuts(boundaries, frozenset(measured) & boundaries.keys())


def check_admission(manifest: Manifest, device: DeviceDescription) -> Admission:
    """Hold a manifest against its profile; what is missing is told in the result."""
    try:
        profile = load_profile(manifest)
    except PermanentError as error:
        return Admission(None, None, error.message, error.hint)
    differences = profile.fingerprint.differences(fingerprint_of(manifest, device))
    if differences:
        return Admission(
            None,
            profile,
            f"the profile is void: {'; '.join(differences)}",
            "measure it anew with `aegis-pipe profile`",
            is_void=True,
        )
    beyond = _beyond_analysis(manifest)
    if beyond:
        return Admission(None, profile, f"{beyond} is not in the analysis yet", "do without it")
    task_set = task_set_of(manifest, profile)

    def recut(longest_ns: int) -> dict[str, tuple[int, ...]]:
        return {task.name: profile.recut(task.model, longest_ns) for task in task_set.tasks}

    return Admission(certify(task_set, recut), profile)


def _beyond_analysis(manifest: Manifest) -> str:
    """Return a key in use that the bounds would not hold with; empty for none."""
    if manifest.streams.in_flight > 1:
        return "`streams.in_flight`"
    for section in manifest.models:
        for key in ("batching", "degrade_to", "concurrency"):
            if getattr(section, key) is not None:
                return f"`{key}` of model `{section.name}`"
    return ""


def record_admission(admission: Admission, phases: PhaseRecorder, phase: Phase) -> None:
    """Say in the phase what came out, with one phase below it for each promise looked at."""
    phase.attributes["proven"] = admission.is_proven
    if admission.certificate is None:
        phase.attributes["problem"] = admission.problem
        return
    if admission.certificate.changes:
        phase.attributes["smallest_change"] = admission.certificate.changes[0].text
    for proof in admission.certificate.proofs:
        task, bound = proof.task, proof.bound
        promise = phases.begin("admission.promise", model=task.model)
        promise.attributes |= {"task": task.name, "verdict": proof.verdict.value}
        if task.deadline_ns is not None:
            promise.attributes["deadline_ns"] = task.deadline_ns
        if bound is not None:
            promise.attributes |= {
                "bound_ns": bound.response_ns,
                "execution_ns": bound.execution_ns,
                "blocking_ns": bound.blocking_ns,
                "blocked_by": bound.blocked_by,
                "interference_ns": sum(bound.interference_ns.values()),
            }
        if proof.slack_ns is not None:
            promise.attributes["slack_ns"] = proof.slack_ns
        phases.end(promise, proof.reason if proof.verdict is Verdict.REFUSED else "")


def refusal(admission: Admission) -> PermanentError:
    """Return the error with which `admission = "enforce"` refuses to start."""
    context = 'scheduler.admission = "enforce"'
    if admission.certificate is None:
        return PermanentError(admission.problem, context=context, hint=admission.hint)
    lines = [f"`{proof.task.name}`: {proof.reason}" for proof in admission.certificate.refused]
    changes = admission.certificate.changes
    hint = (
        f"the smallest change that would pass: {changes[0].text}"
        if changes
        else "no single change of a rate, the segments, a stream or a model is enough"
    )
    return PermanentError(
        f"deadlines can not be shown to be kept: {'; '.join(lines)}", context=context, hint=hint
    )


def admission_outcome(
    manifest: Manifest,
    admission: Admission,
    statistics: Sequence[ModelStatistics],
    overruns: Mapping[str, int],
) -> AdmissionOutcome | None:
    """Return what became of a manifest's promises; None if it wants nothing proven."""
    mode, certificate = manifest.scheduler.admission, admission.certificate
    if mode == "off":
        return None
    if certificate is None:
        return AdmissionOutcome(mode, admission.problem, ())
    return AdmissionOutcome(mode, "", promises_kept(certificate, statistics, overruns))


# --- what is to be simulated --------------------------------------------------------------------


ArrivalsOf = Callable[[PipelineSection], Iterator[int]]
"""Makes the instants at which a pipeline's items arrive."""


def drawn_arrivals(manifest: Manifest, seed: int) -> ArrivalsOf:
    """Return arrivals at the manifest's rates; random ones are drawn anew for every seed."""
    seeds = {pipeline.name: seed + number for number, pipeline in enumerate(manifest.pipelines)}

    def arrivals(pipeline: PipelineSection) -> Iterator[int]:
        source = pipeline.source
        if source.rate_per_s is None:
            return simulation.always()()
        if getattr(source, "arrivals", "periodic") == "poisson":
            return simulation.poisson(source.rate_per_s, seeds[pipeline.name])()
        return simulation.periodic(round(1e9 / source.rate_per_s))()

    return arrivals


def loads_of(manifest: Manifest, profile: Profile, arrivals_of: ArrivalsOf) -> list[Load]:
    """Return the manifest's pipelines, and the models with a period that no pipeline feeds."""
    loads = [
        _pipeline_load(manifest, profile, pipeline, arrivals_of) for pipeline in manifest.pipelines
    ]
    fed = {stage.model for load in loads for stage in load.stages}
    loads += [
        Load(
            section.name,
            (
                _stage_load(
                    profile, manifest.streams.max_block_ns, section, section.name, section.priority
                ),
            ),
            simulation.periodic(section.period_ns),
        )
        for section in manifest.models
        if section.period_ns is not None and section.name not in fed
    ]
    return loads


def _pipeline_load(
    manifest: Manifest, profile: Profile, pipeline: PipelineSection, arrivals_of: ArrivalsOf
) -> Load:
    stages = []
    for stage in _model_stages(pipeline):
        section = manifest.model(stage.model)
        priority = section.priority if pipeline.priority is None else pipeline.priority
        host_ns = _host_times(profile, pipeline, stage)
        stages.append(
            _stage_load(
                profile,
                manifest.streams.max_block_ns,
                section,
                stage.name,
                priority,
                stage.after,
                host_ns,
            )
        )
    # A leg holds one item and its edge `queue_capacity`; a source that nothing slows down fills
    # the edge behind the first model and the legs at both its ends.
    return Load(
        pipeline.name,
        tuple(stages),
        partial(arrivals_of, pipeline),
        window=pipeline.queue_capacity + 2,
        drops=pipeline.full == "drop",
        deadline_ns=pipeline.deadline_ns,
    )


def _stage_load(
    profile: Profile,
    max_block_ns: int,
    section: ModelSection,
    name: str,
    priority: int,
    after: tuple[str, ...] = (),
    host_ns: Sequence[int] = (),
) -> StageLoad:
    model = profile.models[section.name]
    return StageLoad(
        name,
        section.name,
        len(profile.medians_ns(section.name, max_block_ns)),
        priority,
        after,
        section.deadline_ns,
        host_ns,
        model.wakes_ns,
    )


def segments_of(manifest: Manifest, profile: Profile) -> dict[str, int]:
    """Return the number of segments of every model; a batch is cut as often as its model."""
    counts = {
        section.name: len(profile.medians_ns(section.name, manifest.streams.max_block_ns))
        for section in manifest.models
    }
    return counts | {each.name: counts[each.model] for each in variants_of(manifest)}


def times_of(manifest: Manifest, profile: Profile, seed: int) -> MeasuredTimes:
    """Return times drawn from the profile, for segments as the manifest cuts them.

    Models that ran often enough in place have their times from there.
    """
    in_place = in_place_times(profile.in_place)
    return MeasuredTimes(
        {
            name: ModelTimes(
                profile.medians_ns(name, manifest.streams.max_block_ns),
                *in_place.totals_ns.get(name, (model.totals_ns, model.rested_ns, model.idle_ns)),
                {pair.beside: pair.totals_ns for pair in profile.pairs if pair.model == name},
            )
            for name, model in profile.models.items()
        },
        seed,
        in_place.ranks,
    )
