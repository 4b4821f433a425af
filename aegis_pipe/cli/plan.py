"""Show what `up` would do: kernels, memory and schedule of every model.

Reserves nothing, unless `--measure` asks for what segments take.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from aegis_pipe import units
from aegis_pipe.app import PlannedDeployment, plan_deployment, unmet_wishes
from aegis_pipe.cli.admission import admission_json, admission_lines
from aegis_pipe.cli.memory_plot import ArenaDrawing, Budgets, write_plot
from aegis_pipe.cli.segment_costs import costs_table, measure_segments
from aegis_pipe.cli.tables import counted, milliseconds, table
from aegis_pipe.execution.compiler import CompiledModel
from aegis_pipe.manifest.model import ModelSection
from aegis_pipe.manifest_check import check_manifest
from aegis_pipe.memory import check_device_plan, live_at_peak


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the manifest, `--kernels`, `--passes` and `--json`."""
    parser.add_argument("manifest", help="path of the TOML file")
    parser.add_argument("--kernels", action="store_true", help="list every step with its kernel")
    parser.add_argument("--passes", action="store_true", help="list what was rewritten before")
    parser.add_argument(
        "--measure", action="store_true", help="start it, and show what segments take and block"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the memory plan: plan.svg or plan.html"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="hold the finished plan against the independent checker; exit status 1 if it fails",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(options: argparse.Namespace) -> int:
    """Plan and print; a plan over budget raises BudgetExceededError (exit status 1)."""
    planned = plan_deployment(check_manifest(options.manifest))
    violations = check(planned) if options.check else None
    costs = measure_segments(planned.manifest) if options.measure else None
    if options.plot:
        plot(planned, options.plot)
    if options.json:
        described = as_json(planned, steps=options.kernels, passes=options.passes)
        if costs is not None:
            described["segments"] = costs
        if violations is not None:
            described["violations"] = violations
        print(json.dumps(described, indent=2))
    else:
        print(as_text(planned, steps=options.kernels, passes=options.passes))
        if costs is not None:
            print("\nsegments, measured alone\n" + costs_table(costs))
        if violations is not None:
            print("\n" + _check_text(planned, violations))
    return 1 if violations else 0


def check(planned: PlannedDeployment) -> list[str]:
    """Return what the independent checker finds wrong, with the model it is about."""
    models = (*planned.models, *planned.variants)
    alignment_bytes = planned.device.alignment_bytes
    found = [
        f"{model.name}: {violation}"
        for model in models
        for violation in model.violations(alignment_bytes)
    ]
    memories = {each.model: each for each in planned.memory.models}
    compiled = {model.name: model.plan.peak_bytes for model in models}
    if {name: each.arena_bytes for name, each in memories.items()} != compiled:
        found.append("device: the models' arenas are not those of their plans")
    staged = {
        model.name: (model.staging_bytes(planned.device), model.staging_ahead_bytes(planned.device))
        for model in models
    }
    planned_staging = {
        name: (each.staging_bytes, each.staging_ahead_bytes) for name, each in memories.items()
    }
    if planned_staging != staged:
        found.append("device: what is staged is not what the models' inputs and outputs need")
    section = planned.manifest.device
    found += [
        f"device: {message}"
        for message in check_device_plan(
            planned.memory, memories, section.memory_budget_bytes, section.staging_budget_bytes
        )
    ]
    return found


def _check_text(planned: PlannedDeployment, violations: list[str]) -> str:
    if violations:
        return "\n".join([f"check: {len(violations)} violations", *violations])
    models = (*planned.models, *planned.variants)
    tensors = sum(len(model.analysis.storage_of) for model in models)
    return (
        f"check: sound; {counted(len(models), 'model')}, {counted(tensors, 'tensor')}, "
        f"{counted(sum(len(model.steps) for model in models), 'step')}"
    )


def plot(planned: PlannedDeployment, path: Path) -> None:
    """Draw the memory plan of every model, and the device's total."""
    arenas = [
        ArenaDrawing(
            f"arena of {model.name}",
            model.analysis.lifetimes,
            model.plan,
            [step.name for step in model.analysis.steps],
            live_at_peak(model.analysis.lifetimes)[0],
        )
        for model in planned.models
    ]
    name, section = planned.manifest.name, planned.manifest.device
    budgets = Budgets(section.memory_budget_bytes, section.staging_budget_bytes)
    write_plot(path, name, arenas, planned.memory, budgets)


def as_text(planned: PlannedDeployment, *, steps: bool, passes: bool) -> str:
    """Format the plan for a terminal."""
    manifest = planned.manifest
    lines = [
        f"{manifest.name} on {planned.device.name} ({planned.device.model}): "
        f"{planned.device_reason}",
        "",
        "memory",
        _memory_table(planned),
        "",
        *_totals(planned),
        *_state_lines(planned),
        "",
        f"schedule: policy {manifest.scheduler.policy}, "
        f"{counted(manifest.streams.count, 'stream')}, "
        f"queue of {manifest.scheduler.queue_capacity}, "
        f"segments of at most {milliseconds(manifest.streams.max_block_ns)} ms",
        _schedule_table(planned),
        "",
        *admission_lines(planned.manifest, planned.admission),
        "",
        "kernels",
        *[_kernel_line(model) for model in planned.models],
        *[_branch_line(model) for model in (*planned.models, *planned.variants) if model.branching],
        *[
            f"  {model.name}: no alternatives of kernels are taken; {model.plain_because}"
            for model in (*planned.models, *planned.variants)
            if model.plain_because
        ],
    ]
    if passes:
        lines += [line for model in planned.models for line in ("", *_pass_lines(model))]
    lines += [f"note: {wish}" for wish in unmet_wishes(manifest)]
    if steps:
        lines += [line for model in planned.models for line in ("", *_step_lines(model))]
    return "\n".join(lines)


def _memory_table(planned: PlannedDeployment) -> str:
    size = units.format_size
    rows = [
        (
            model.name,
            str(len(model.graph.operators)),
            size(model.weight_bytes),
            size(model.plan.peak_bytes),
            size(model.plan.lower_bound_bytes),
            "yes" if model.plan.optimal else f"+{model.plan.gap:.1%}",
            size(model.staging_bytes(planned.device)),
            _size_or_dash(section.memory_budget_bytes),
        )
        for model, section in zip(planned.models, planned.manifest.models, strict=True)
    ] + [
        (
            variant.name,
            str(len(variant.graph.operators)),
            size(_extra_weight_bytes(variant, planned)),
            size(variant.plan.peak_bytes),
            size(variant.plan.lower_bound_bytes),
            "yes" if variant.plan.optimal else f"+{variant.plan.gap:.1%}",
            size(variant.staging_bytes(planned.device)),
            "-",
        )
        for variant in planned.variants
    ]
    header = (
        "model",
        "operators",
        "weights",
        "activations",
        "lower bound",
        "optimal",
        "staging",
        "budget",
    )
    return table(header, rows)


def _extra_weight_bytes(variant: CompiledModel, planned: PlannedDeployment) -> int:
    """Return the bytes of weights in a layout that no model has brought along."""
    there = {key for model in planned.models for key in model.weights}
    return sum(each.size_bytes for key, each in variant.weights.items() if key not in there)


def _size_or_dash(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else units.format_size(size_bytes)


def _totals(planned: PlannedDeployment) -> list[str]:
    memory, size, section = planned.memory, units.format_size, planned.manifest.device
    straight = "" if planned.device.staging_alignment_bytes else "; copies go straight"
    return [
        f"device total {size(memory.total_bytes)}{_of_budget(section.memory_budget_bytes)}:",
        *[f"  {part}" for part in memory.parts],
        f"each model on its own would take {size(memory.separate_bytes)}; "
        f"sharing saves {size(max(0, memory.saved_bytes))}",
        f"host staging {size(memory.staging_bytes)}{_of_budget(section.staging_budget_bytes)}"
        f"{straight}" + (":" if memory.staging_parts else ""),
        *[f"  {part}" for part in memory.staging_parts],
    ]


def _state_lines(planned: PlannedDeployment) -> list[str]:
    lines = []
    for model in planned.models:
        if model.states:
            in_place = len(model.updated_in_place)
            how = f"{in_place} updated in place" if in_place else "copied at the end of a request"
            size = units.format_size(sum(model.state_bytes.values()))
            lines.append(f"{model.name}: {counted(len(model.states), 'state')} of {size}, {how}")
    return lines


def _of_budget(budget_bytes: int | None) -> str:
    if budget_bytes is None:
        return ", no budget"
    return f" of a budget of {units.format_size(budget_bytes)}"


def _schedule_table(planned: PlannedDeployment) -> str:
    def duration(value_ns: int | None) -> str:
        return "-" if value_ns is None else units.format_duration(value_ns)

    rows = [
        (
            m.name,
            str(m.priority),
            duration(m.period_ns),
            duration(m.deadline_ns),
            m.late,
            str(len(planned.cuts.boundaries[m.name]) + 1),
            planned.cuts.origin(m.name),
        )
        for m in planned.manifest.models
    ]
    header = ("model", "priority", "period", "deadline", "when late", "segments", "cut by")
    return table(header, rows)


def _kernel_line(model: CompiledModel) -> str:
    launched = [step for step in model.steps if step.is_launched]
    reference = Counter(step.operator for step in model.reference_steps)
    views = len(model.steps) - len(launched)
    line = f"  {model.name}: {len(launched)} kernels, {views} views"
    if reference:
        named = ", ".join(f"{count} {operator}" for operator, count in sorted(reference.items()))
        line += f"; {sum(reference.values())} run as reference kernels (slow): {named}"
    return line


def _branch_line(model: CompiledModel) -> str:
    """Say which branches run side by side, and why no others do."""
    found = model.branching
    assert found is not None
    line = f"  {model.name}: branches of {found.taken} of {counted(found.possible, 'fork')} run"
    line += " side by side"
    if found.grown_bytes > 0:
        line += f", for {units.format_size(found.grown_bytes)} more"
    if not found.chain_ns:
        return f"{line}: {found.given_up or 'the arena would grow too large'}"
    one = units.format_duration(found.chain_ns)
    if not found.forked_ns:
        return f"{line}: none is faster than as a chain; the model takes {one}"
    line += f": measured {units.format_duration(found.forked_ns)}, as a chain {one}"
    return f"{line}; {found.given_up}" if found.given_up else line


def _step_lines(model: CompiledModel) -> list[str]:
    rows = [
        (
            str(index),
            step.operator,
            step.choice.kernel if step.is_launched else "view",
            str(step.request.outputs[0]) if step.request.outputs else "",
            step.node[:60],
        )
        for index, step in enumerate(model.steps)
    ]
    return [f"{model.name}", table(("step", "operator", "kernel", "output", "node"), rows, left=5)]


def _pass_lines(model: CompiledModel) -> list[str]:
    rows = [(one.name, str(one.nodes_before), str(one.nodes_after)) for one in model.passes]
    return [model.name, table(("pass", "operators before", "after"), rows)]


def as_json(planned: PlannedDeployment, *, steps: bool, passes: bool) -> dict[str, Any]:
    """Return the plan as plain values; sizes in bytes, durations in nanoseconds."""
    memory = planned.memory
    return {
        "name": planned.manifest.name,
        "device": {
            "name": planned.device.name,
            "model": planned.device.model,
            "reason": planned.device_reason,
        },
        "memory": {
            "total_bytes": memory.total_bytes,
            "budget_bytes": planned.manifest.device.memory_budget_bytes,
            "weights_bytes": memory.weights_bytes,
            "arena_bytes": memory.arena_bytes,
            "arenas": [
                {"size_bytes": arena.size_bytes, "models": list(arena.models)}
                for arena in memory.arenas
            ],
            "streams": memory.stream_count,
            "separate_bytes": memory.separate_bytes,
            "saved_bytes": memory.saved_bytes,
            "staging": {
                "total_bytes": memory.staging_bytes,
                "budget_bytes": planned.manifest.device.staging_budget_bytes,
                "streams": [
                    {"size_bytes": each.size_bytes, "model": each.model or None}
                    for each in memory.staging
                ],
                "next_requests": {
                    "count": memory.staging_ahead.parts,
                    "size_bytes": memory.staging_ahead.size_bytes,
                    "model": memory.staging_ahead.model or None,
                },
            },
        },
        "schedule": {
            "policy": planned.manifest.scheduler.policy,
            "streams": planned.manifest.streams.count,
            "queue_capacity": planned.manifest.scheduler.queue_capacity,
            "max_block_ns": planned.manifest.streams.max_block_ns,
        },
        "admission": admission_json(planned.admission),
        "models": [
            {
                **_model_json(model, section, steps, passes),
                "staging_bytes": model.staging_bytes(planned.device),
                "segments": len(planned.cuts.boundaries[model.name]) + 1,
                "cut_by": planned.cuts.origin(model.name),
            }
            for model, section in zip(planned.models, planned.manifest.models, strict=True)
        ],
    }


def _branches_json(model: CompiledModel) -> dict[str, Any] | None:
    found = model.branching
    if found is None:
        return None
    return {
        "forks": [[len(branch) for branch in fork] for fork in model.forks],
        "possible": found.possible,
        "chain_ns": found.chain_ns or None,
        "forked_ns": found.forked_ns or None,
        "grown_bytes": found.grown_bytes,
        "given_up": found.given_up or None,
    }


def _model_json(
    model: CompiledModel, section: ModelSection, steps: bool, passes: bool
) -> dict[str, Any]:
    plan = model.plan
    described: dict[str, Any] = {
        "name": model.name,
        "operators": len(model.graph.operators),
        "weights_bytes": model.weight_bytes,
        "activations_bytes": plan.peak_bytes,
        "lower_bound_bytes": plan.lower_bound_bytes,
        "optimal": plan.optimal,
        "algorithm": plan.algorithm,
        "memory_budget_bytes": section.memory_budget_bytes,
        "priority": section.priority,
        "period_ns": section.period_ns,
        "deadline_ns": section.deadline_ns,
        "inputs": {name: str(model.graph.spec(name)) for name in model.graph.inputs},
        "outputs": {name: str(model.graph.spec(name)) for name in model.graph.results},
        "states": [
            {
                "input": name,
                "output": output,
                "size_bytes": model.state_bytes[name],
                "in_place": name in model.updated_in_place,
            }
            for name, output in model.states.items()
        ],
        "reference_kernels": [step.node for step in model.reference_steps],
        "branches": _branches_json(model),
        "alternatives_given_up": model.plain_because or None,
    }
    if passes:
        described["passes"] = [one._asdict() for one in model.passes]
    if steps:
        described["steps"] = [
            {
                "node": step.node,
                "operator": step.operator,
                "kernel": step.choice.kernel if step.is_launched else "view",
                "workspace_bytes": step.choice.workspace_bytes,
                "outputs": [str(spec) for spec in step.request.outputs if spec],
            }
            for step in model.steps
        ]
    return described
