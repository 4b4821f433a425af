"""Names of every span and attribute, with what they mean; `docs/telemetry.md` is made from this.

Span names are of low cardinality (what a query groups by); everything particular is an attribute.
All attributes live under `aegis.`, so that no viewer mistakes them for conventions of its own.
"""

from __future__ import annotations

from typing import Final

INFER: Final = "infer"
QUEUE_WAIT: Final = "queue.wait"
SCHEDULE_DECIDE: Final = "schedule.decide"
EXECUTE: Final = "execute"
STREAM_LANE: Final = "stream"
SEGMENT_RUN: Final = "segment"
COPY: Final = "copy"
PIPELINE_ITEM: Final = "pipeline"
MODEL_LOAD: Final = "model.load"
POOL_RESERVE: Final = "pool.reserve"
RUNTIME_START: Final = "runtime.start"
RELOAD: Final = "reload"
MEMORY_ALLOCATED_EVENT: Final = "memory.allocated"
EVENT_SYNCHRONISED_EVENT: Final = "event.synchronised"
DECIDED_EVENT: Final = "decided"

AGGREGATED: Final = "aegis.aggregated"
ARENA_BYTES: Final = "aegis.arena_bytes"
BLOCKED_BY: Final = "aegis.blocked_by"
BUSY_NS: Final = "aegis.busy_ns"
CALLS: Final = "aegis.calls"
CANDIDATE_IDS: Final = "aegis.candidates.ids"
CANDIDATE_SCORES: Final = "aegis.candidates.scores"
DEADLINE_MISSED: Final = "aegis.deadline.missed"
DEADLINE_NS: Final = "aegis.deadline_ns"
DECISION: Final = "aegis.decision"
DECISION_SEQUENCE: Final = "aegis.decision.sequence"
DECISIONS_LOG: Final = "aegis.decisions.log"
DECISIONS_OMITTED: Final = "aegis.decisions.omitted"
DROPPED_EVENTS: Final = "aegis.telemetry.dropped_events"
DURATION_NS: Final = "aegis.duration_ns"
EVENTS_OMITTED: Final = "aegis.events.omitted"
ITEM: Final = "aegis.item"
KERNEL: Final = "aegis.kernel"
LINK: Final = "aegis.link"
LIVED_NS: Final = "aegis.lived_ns"
MODEL: Final = "aegis.model"
NODE: Final = "aegis.node"
OFFSET_BYTES: Final = "aegis.offset_bytes"
OPERATOR: Final = "aegis.operator"
OUTCOME: Final = "aegis.outcome"
PIPELINE: Final = "aegis.pipeline"
POLICY: Final = "aegis.policy"
POOL: Final = "aegis.pool"
PRIORITY: Final = "aegis.priority"
QUEUE_DEPTH: Final = "aegis.queue.depth"
REASON: Final = "aegis.reason"
RECORD_STREAM: Final = "aegis.record_stream"
RELOAD_DIGEST_AFTER: Final = "aegis.reload.digest.after"
RELOAD_DIGEST_BEFORE: Final = "aegis.reload.digest.before"
RELOAD_MODELS_ADDED: Final = "aegis.reload.models.added"
RELOAD_MODELS_KEPT: Final = "aegis.reload.models.kept"
RELOAD_MODELS_RELOADED: Final = "aegis.reload.models.reloaded"
RELOAD_MODELS_REMOVED: Final = "aegis.reload.models.removed"
RELOAD_OUTCOME: Final = "aegis.reload.outcome"
RELOAD_REQUESTS_HELD: Final = "aegis.reload.requests_held"
REQUEST_ID: Final = "aegis.request.id"
RULE: Final = "aegis.rule"
SEGMENT: Final = "aegis.segment"
SEGMENTS: Final = "aegis.segments"
SEGMENT_TIMES_NS: Final = "aegis.segment_times_ns"
SIZE_BYTES: Final = "aegis.size_bytes"
SLACK_NS: Final = "aegis.slack_ns"
STAGE: Final = "aegis.stage"
STAGE_KIND: Final = "aegis.stage.kind"
STREAM: Final = "aegis.stream"
TENSOR: Final = "aegis.tensor"
WAIT_STREAM: Final = "aegis.wait_stream"
WEIGHTS_BYTES: Final = "aegis.weights_bytes"
WINNER: Final = "aegis.winner"

LINK_MODEL_LOAD: Final = "model.load"
LINK_BLOCKED_BY: Final = "blocked_by"
LINK_INFER: Final = "infer"
LINK_PREVIOUS_START: Final = "previous_start"

PREFIX: Final = "aegis."
PHASE_PREFIX: Final = "aegis.phase."
"""Before the names that a `PhaseFinished` event brings along itself, unless they have `PREFIX`."""

SPANS: Final[dict[str, tuple[str, str, str]]] = {
    "infer <model>": (
        "host",
        "none, the caller's span, or the stage of a pipeline",
        "A request, from arrival to its final state, with an event `decided` for each decision "
        "that was not to continue it. Links to its model's `model.load` and to the requests that "
        "held the streams while it waited.",
    ),
    "queue.wait": ("host", "`infer`", "From arrival to the decision that ended the wait."),
    "schedule.decide": (
        "host",
        "`infer`; `execute` once it runs",
        "One decision of the scheduler, with candidates, winner and rule.",
    ),
    "execute": ("host", "`infer`", "From the decision to start it to its final state."),
    "stream <index>": ("device", "`execute`", "What one stream did for this request."),
    "<operator>": (
        "device",
        "`stream`",
        "A kernel, by its stamps; named without the operator's domain. Over `max_spans`, one span "
        "an operator from first start to last end.",
    ),
    "segment": ("device", "`stream`", "A segment whose kernels were not stamped."),
    "copy.in, copy.out": ("device", "`stream`", "Inputs to the device, outputs to the host."),
    "pipeline <name>": ("host", "none", "An item, from its source to its last sink."),
    "<kind> <stage>": (
        "host",
        "`pipeline`",
        "A `source`, `transform`, `model` or `sink` stage; the parent of its request's `infer`. "
        "The source is just `source`.",
    ),
    "model.load": ("host", "none, or the phase around it", "A model's way from file to streams."),
    "runtime.start": (
        "host",
        "none",
        "A start of the runtime, with the device's opening and the admission.",
    ),
    "reload": (
        "host",
        "none",
        "A reload of the manifest: `manifest.validate`, `admission`, `model.load` and `plan` "
        "before anything is touched, then `drain` and what starts the new one; an error if it was "
        "not applied. Links to the start or reload before it.",
    ),
    "drain": (
        "host",
        "`reload`",
        "Waiting for the requests and items under way; submissions wait meanwhile and after.",
    ),
    "admission": (
        "host",
        "`runtime.start` or `reload`",
        "Holding deadlines against the profile: whether they are proven, or what would help.",
    ),
    "admission.promise": (
        "host",
        "`admission`",
        "One task's bound and what it is made of; an error if it is refused.",
    ),
    "<phase>": (
        "host",
        "the phase around it",
        "A phase of the load: `onnx.load`, `passes`, `memory.plan`, `pool.reserve` (with an event "
        "for each planned tensor), `graph.capture` and so on.",
    ),
}
"""Span name -> (service, parent, meaning)."""

ATTRIBUTES: Final[dict[str, tuple[str, str]]] = {
    AGGREGATED: ("bool", "This span stands for several; `aegis.duration_ns` is their sum."),
    ARENA_BYTES: ("int", "Activations and workspaces of the model, in bytes."),
    BLOCKED_BY: ("int[]", "Requests that held the streams while this one waited."),
    BUSY_NS: ("int", "Time the stream worked for the request: its segments and copies."),
    CALLS: ("int", "Spans that an aggregated span stands for."),
    CANDIDATE_IDS: ("int[]", "The best few waiting requests, best first."),
    CANDIDATE_SCORES: ("float[]", "Their scores under the policy, in the same order."),
    DEADLINE_MISSED: ("bool", "The result came after the deadline, or never."),
    DEADLINE_NS: ("int", "Time the request had, from arrival to deadline."),
    DECISION: ("string", "`start`, `continue`, `expire`, `reject` or `cancel`."),
    DECISION_SEQUENCE: ("int", "Position in the run's decision log."),
    DECISIONS_LOG: (
        "string",
        "The decisions left out, as JSON: a list of `[start after the span's start in ns, duration "
        "in ns, sequence, kind, rule, stream, queue depth, candidates, blocked by]`.",
    ),
    DECISIONS_OMITTED: ("int", "Decisions left out over `max_spans`: no spans, only the log."),
    DROPPED_EVENTS: (
        "int",
        "On the first span of a trace: events that the run had lost by then, if any. What is "
        "missing may be missing for that.",
    ),
    DURATION_NS: ("int", "The true duration; viewers show whole microseconds."),
    EVENTS_OMITTED: ("int", "Events over the limit of 128 a span."),
    ITEM: ("int", "Number of the pipeline's item."),
    KERNEL: ("string", "Name of the kernel that the device chose."),
    LINK: ("string", "On a link: `model.load`, `blocked_by`, `infer` or `previous_start`."),
    LIVED_NS: (
        "int",
        "Time from arrival to the final state, where the span is longer: it goes on to the end of "
        "the decision that ended the request.",
    ),
    MODEL: (
        "string",
        "Name of the model; on `stream` only if another ran than was asked for: a batch's variant "
        "or a stand-in.",
    ),
    NODE: ("string", "Name of the graph's node."),
    OFFSET_BYTES: ("int", "Planned place in the pool."),
    OPERATOR: (
        "string",
        "Canonical name of the operator, with its domain unless that is ONNX's own.",
    ),
    OUTCOME: ("string", "`completed`, `failed`, `expired`, `rejected`, `cancelled`, `dropped`."),
    PIPELINE: ("string", "Name of the pipeline."),
    POLICY: ("string", "Name of the scheduling policy."),
    POOL: ("string", "Name of the memory pool."),
    PRIORITY: ("int", "Higher is more urgent."),
    QUEUE_DEPTH: ("int", "Requests waiting: at submission, or before the decision."),
    REASON: ("string", "Code of why it ended as it did; left out where there is nothing to say."),
    RECORD_STREAM: ("int", "Stream that recorded the event."),
    RELOAD_OUTCOME: (
        "string",
        "On `reload`: `applied`, `unchanged`, `refused`, `restored` or `failed`.",
    ),
    RELOAD_DIGEST_BEFORE: ("string", "On `reload`: SHA-256 of the manifest that ran."),
    RELOAD_DIGEST_AFTER: ("string", "On `reload`: SHA-256 of the new one; empty if unreadable."),
    RELOAD_MODELS_ADDED: ("string", "On `reload`: models of the new manifest only, by commas."),
    RELOAD_MODELS_REMOVED: ("string", "On `reload`: models of the manifest before only."),
    RELOAD_MODELS_RELOADED: ("string", "On `reload`: models of both that were loaded anew."),
    RELOAD_MODELS_KEPT: ("string", "On `reload`: models of both that stayed on the device."),
    RELOAD_REQUESTS_HELD: ("int", "On `reload`: requests that came and waited for its end."),
    REQUEST_ID: ("int", "Number of the request within the run."),
    RULE: ("string", "Code of the rule by which the decision was made."),
    SEGMENT: ("int", "Position among the model's segments."),
    SEGMENTS: ("int", "Segments that ran in this lane."),
    SEGMENT_TIMES_NS: (
        "int[]",
        "Per segment of this lane its position, and when the host enqueued it, it began and it "
        "ended, in ns after the request's arrival.",
    ),
    SIZE_BYTES: ("int", "Size of the tensor or copy."),
    SLACK_NS: (
        "int",
        "Time left until the deadline, at the end or at the decision; negative if it was missed.",
    ),
    STAGE: ("string", "Name of the stage, source or sink."),
    STAGE_KIND: ("string", "`source`, `transform`, `model` or `sink`."),
    STREAM: ("int", "Index of the stream."),
    TENSOR: ("string", "Name of the tensor."),
    WAIT_STREAM: ("int", "Stream that waited for the event."),
    WEIGHTS_BYTES: ("int", "Weights of the model, in bytes."),
    WINNER: ("int", "The request that was chosen to start."),
}
"""Attribute -> (type, meaning)."""
