"""What a running manifest says of itself: its figures so far, and how the run went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aegis_pipe.analysis.promises import AdmissionOutcome
from aegis_pipe.device.protocols import StagingStatistics
from aegis_pipe.memory import DevicePlan
from aegis_pipe.pipeline import PipelineReport
from aegis_pipe.revision import Recording
from aegis_pipe.scheduling.statistics import ModelStatistics
from aegis_pipe.telemetry import TelemetryReport

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class RuntimeStatistics:
    """Figures of a running manifest."""

    models: tuple[ModelStatistics, ...]
    queue_depth: int
    allocations_after_start: int
    """Device allocations since everything was loaded: 0, or the plan is broken."""
    staging: tuple[StagingStatistics, ...]
    """Host memory that each stream's copies pass through, and what was needed of it."""
    staged_ahead: int
    """Requests whose inputs were staged while others ran; since the last reload."""


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """How a run went."""

    name: str
    device: str
    streams: int
    policy: str
    elapsed_ns: int
    memory_budget_bytes: int | None
    plan: DevicePlan
    statistics: RuntimeStatistics
    pipelines: tuple[PipelineReport, ...]
    telemetry: TelemetryReport | None
    """None if telemetry goes nowhere."""
    overruns: Mapping[str, int]
    """Segments that took longer than the profile says, by model; empty without a profile."""
    admission: AdmissionOutcome | None
    """What was promised and how it was kept, of the whole run; None with `admission = "off"`."""
    recordings: tuple[Recording, ...]
    """Of the run up to its first reload, and from each one on; empty unless asked for."""

    @property
    def failed(self) -> bool:
        """Whether something went wrong that the user has to see to."""
        return (
            any(p.failed or p.error for p in self.pipelines)
            or any(m.failed for m in self.statistics.models)
            or any(recording.problem for recording in self.recordings)
            or self.has_broken_promise
        )

    @property
    def has_broken_promise(self) -> bool:
        """Whether a model was admitted under `admission = "enforce"` and missed a deadline."""
        admission = self.admission
        return admission is not None and admission.mode == "enforce" and bool(admission.broken)
