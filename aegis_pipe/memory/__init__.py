"""Layer 2: memory is planned, checked and reserved before it is used."""

from aegis_pipe.memory.analyser import LifetimeAnalyser, MemoryAnalysis
from aegis_pipe.memory.budgets import (
    ArenaPlan,
    BudgetPart,
    DevicePlan,
    Measure,
    ModelMemory,
    MoreSavings,
    StagingPlan,
    check_budget,
    check_device_budget,
    check_model_budget,
    check_staging_budget,
    live_at_peak,
    nested_streams,
    savings,
)
from aegis_pipe.memory.buffer import DeviceBuffer
from aegis_pipe.memory.check import (
    PlanViolation,
    assert_plan_is_sound,
    check_lifetimes,
    check_plan,
)
from aegis_pipe.memory.content import content_digest
from aegis_pipe.memory.device_check import check_device_plan
from aegis_pipe.memory.host import return_freed_memory
from aegis_pipe.memory.lifetimes import MemoryStep, Part, TensorLifetime, WorkspaceId
from aegis_pipe.memory.plan import AllocationPlan
from aegis_pipe.memory.planner import MemoryPlanner
from aegis_pipe.memory.pool import DeviceMemoryPool, PoolStatistics

__all__ = [
    "AllocationPlan",
    "ArenaPlan",
    "BudgetPart",
    "DeviceBuffer",
    "DeviceMemoryPool",
    "DevicePlan",
    "LifetimeAnalyser",
    "Measure",
    "MemoryAnalysis",
    "MemoryPlanner",
    "MemoryStep",
    "ModelMemory",
    "MoreSavings",
    "Part",
    "PlanViolation",
    "PoolStatistics",
    "StagingPlan",
    "TensorLifetime",
    "WorkspaceId",
    "assert_plan_is_sound",
    "check_budget",
    "check_device_budget",
    "check_device_plan",
    "check_lifetimes",
    "check_model_budget",
    "check_plan",
    "check_staging_budget",
    "content_digest",
    "live_at_peak",
    "nested_streams",
    "return_freed_memory",
    "savings",
]
