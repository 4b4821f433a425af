"""Layer 4: who runs next, on which stream, and why.

loop.py         OrchestrationLoop: carries decisions out, on its own thread
scheduler.py    Scheduler: facts in, decisions out; pure
open_requests.py OpenRequests: the scheduler's half that moves requests and holds their streams
model_rules.py  RuleBook: what the scheduler was told of each model
queue.py        BoundedQueue: the gate, and the policy's order behind it
deadlines.py    Deadlines: who is late, and the timers that notice
stream_pool.py  StreamPool: the fixed streams and their holders
batching.py     Batching: which requests of a model run together
takeovers.py    Takeovers: who had which stream, for `blocked_by`
policy.py       SchedulingPolicy, KeyedPolicy; policies/ has the table and one file each
decision.py     Decision, Reason; request.py: ExecutionRequest and its states
"""

from aegis_pipe.scheduling.batching import Batching
from aegis_pipe.scheduling.decision import Decision, DecisionKind, Reason, format_decision
from aegis_pipe.scheduling.loop import Launcher, OrchestrationLoop, SegmentCompletion
from aegis_pipe.scheduling.model_rules import Late, StandIn
from aegis_pipe.scheduling.policies import POLICIES, make_policy
from aegis_pipe.scheduling.policy import KeyedPolicy, SchedulingPolicy
from aegis_pipe.scheduling.queue import BoundedQueue
from aegis_pipe.scheduling.request import ExecutionRequest, RequestState
from aegis_pipe.scheduling.scheduler import Scheduler
from aegis_pipe.scheduling.statistics import SchedulerStatistics
from aegis_pipe.scheduling.stream_pool import StreamPool

__all__ = [
    "Batching",
    "BoundedQueue",
    "Decision",
    "DecisionKind",
    "ExecutionRequest",
    "KeyedPolicy",
    "Late",
    "Launcher",
    "OrchestrationLoop",
    "POLICIES",
    "Reason",
    "RequestState",
    "Scheduler",
    "SchedulerStatistics",
    "SchedulingPolicy",
    "SegmentCompletion",
    "StandIn",
    "StreamPool",
    "format_decision",
    "make_policy",
]
