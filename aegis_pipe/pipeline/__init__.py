"""Pipelines: a source, stages, sinks; declared in the manifest, run by `PipelineRunner`."""

from aegis_pipe.pipeline.plan import PipelinePlan, SinkPlan, StagePlan
from aegis_pipe.pipeline.runner import PipelineReport, PipelineRunner

__all__ = ["PipelinePlan", "PipelineReport", "PipelineRunner", "SinkPlan", "StagePlan"]
