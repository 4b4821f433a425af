"""The composition root: from a manifest to a running system.

Builds, wires and hands down; decides nothing.

    open_pipeline(path) -> Runtime     everything running; a context manager
    plan_deployment(manifest)          the same up to memory's plan; nothing reserved
    check_manifest(path)               the manifest with all its cross-checks; no device
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from aegis_pipe import units
from aegis_pipe.clock import Clock, SystemClock
from aegis_pipe.device.protocols import DeviceContext, DeviceDescription
from aegis_pipe.device.registry import OpenedDevice, open_device
from aegis_pipe.errors import AegisError, InvalidInputError, PipelineError
from aegis_pipe.events import EventHub, Listener, PhaseRecorder, RuntimeStarted, RuntimeStopped
from aegis_pipe.execution.compiler import CompiledModel
from aegis_pipe.execution.deployment import (
    Deployment,
    LoadedModel,
    ModelOrder,
    compile_models,
)
from aegis_pipe.execution.executor import check_inputs
from aegis_pipe.execution.model_inspection import inspect_model
from aegis_pipe.execution.model_loader import LoadOptions
from aegis_pipe.execution.program import BoundModel
from aegis_pipe.manifest import Manifest, ModelSection, PipelineSection, load_manifest
from aegis_pipe.memory import DevicePlan, plan_device
from aegis_pipe.pipeline import PipelinePlan, PipelineReport, PipelineRunner, SinkPlan, StagePlan
from aegis_pipe.pipeline.arrivals import make_arrivals
from aegis_pipe.pipeline.sinks import SINKS
from aegis_pipe.pipeline.sources import SOURCES
from aegis_pipe.pipeline.sources.synthetic import SyntheticTensor
from aegis_pipe.pipeline.transforms import TRANSFORMS
from aegis_pipe.scheduling.device_launcher import (
    DeviceLauncher,
    InferenceFuture,
    RequestPayload,
    StreamSlot,
)
from aegis_pipe.scheduling.loop import OrchestrationLoop
from aegis_pipe.scheduling.policies import make_policy
from aegis_pipe.scheduling.scheduler import Scheduler
from aegis_pipe.scheduling.statistics import ModelStatistics, RequestStatistics
from aegis_pipe.scheduling.stream_pool import StreamPool
from aegis_pipe.telemetry import Telemetry, TelemetryConfig
from aegis_pipe.tensor import TensorSpec


@dataclass(frozen=True, slots=True)
class ModelInformation:
    """What a caller needs to know of a model."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class RuntimeStatistics:
    """Figures of a running manifest."""

    models: tuple[ModelStatistics, ...]
    queue_depth: int
    allocations_after_start: int
    """Device allocations since everything was loaded: 0, or the plan is broken."""


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """How a run went."""

    name: str
    device: str
    streams: int
    policy: str
    elapsed_ns: int
    plan: DevicePlan
    statistics: RuntimeStatistics
    pipelines: tuple[PipelineReport, ...]
    telemetry: tuple[str, ...]
    """One line each on where the traces and the log are."""

    @property
    def failed(self) -> bool:
        """Whether something went wrong that the user has to see to."""
        return any(p.failed or p.error for p in self.pipelines) or any(
            m.failed for m in self.statistics.models
        )


def check_manifest(path: str | Path) -> Manifest:
    """Load a manifest and look into its models; raises ManifestError with all problems."""
    return load_manifest(path, inspect_model=inspect_model)
