"""The composition root: from a manifest to a running system. Builds, wires, hands down; decides
nothing.

    open_pipeline(path) -> Runtime     everything running; a context manager
    plan_deployment(manifest)          the same up to memory's plan; nothing reserved
    check_manifest(path)               the manifest with all its cross-checks; no device
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np

from aegis_pipe import units
from aegis_pipe.clock import Clock, SystemClock
from aegis_pipe.device.protocols import DeviceContext, DeviceDescription
from aegis_pipe.device.registry import open_device
from aegis_pipe.errors import AegisError, InvalidInputError
from aegis_pipe.events import EventHub, Listener, PhaseRecorder, RuntimeStarted, RuntimeStopped
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
from aegis_pipe.manifest import Manifest, ModelSection, load_manifest
from aegis_pipe.memory import DevicePlan, plan_device
from aegis_pipe.scheduling.device_launcher import (
    DeviceLauncher,
    InferenceFuture,
    RequestPayload,
    StreamSlot,
)
from aegis_pipe.tensor import TensorSpec
