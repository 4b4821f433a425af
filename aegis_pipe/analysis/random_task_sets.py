"""Random task sets, and what the real scheduler makes of them on virtual time."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from aegis_pipe.analysis.certificate import certify
from aegis_pipe.analysis.simulation import Load, Loads, StageLoad, fixed_times, run
from aegis_pipe.analysis.task_set import Task, TaskSet
from aegis_pipe.scheduling.policies import make_policy
from aegis_pipe.scheduling.request import ExecutionRequest
from aegis_pipe.scheduling.scheduler import Scheduler
from aegis_pipe.scheduling.stream_pool import StreamPool

_MS = 1_000_000
QUEUE_CAPACITY = 100_000


def draw_task_set(
    dice: random.Random,
    *,
    policy: str = "priority",
    ageing_ns: int = 0,
    streams: int = 1,
    load: tuple[float, float] = (0.3, 0.95),
    spread: float = 30.0,
    shortest_ns: int = 10 * _MS,
) -> TaskSet:
    """Draw two to six tasks; `load` is the range of the streams' share that they take together.

    Shares of the utilisation are drawn by UUniFast (Bini and Buttazzo 2005), periods from
    `shortest_ns` to `spread` times that, evenly in their logarithm; priorities follow deadlines.
    """
    count = dice.randint(2, 6)
    left = dice.uniform(*load) * streams
    tasks = []
    for number in range(count):
        rest = count - number - 1
        after = left * dice.random() ** (1 / rest) if rest else 0.0
        share, left = min(left - after, 0.9), after
        period_ns = round(shortest_ns * spread ** dice.random())
        cost_ns = max(1000, round(share * period_ns))
        pieces = dice.randint(1, 8)
        deadline_ns = round(period_ns * dice.uniform(0.7, 1.0))
        tasks.append(
            Task(
                name=f"t{number}",
                model=f"t{number}",
                source=f"t{number}",
                segments_ns=_pieces(dice, cost_ns, pieces),
                period_ns=period_ns,
                deadline_ns=deadline_ns,
                memory=f"t{number}" if policy in ("priority", "edf") else 0,
                streams=frozenset(range(streams)),
            )
        )
    tasks.sort(key=lambda task: -(task.deadline_ns or 0))
    ranked = tuple(replace(task, priority=rank) for rank, task in enumerate(tasks))
    return TaskSet(ranked, policy, ageing_ns, streams)


def _pieces(dice: random.Random, total_ns: int, count: int) -> tuple[int, ...]:
    cuts = sorted(dice.randrange(1, total_ns) for _ in range(count - 1))
    edges = [0, *cuts, total_ns]
    return tuple(max(1, end - first) for first, end in itertools.pairwise(edges))


def scheduler_of(task_set: TaskSet) -> Scheduler:
    """Make the scheduler that a task set stands for."""
    options = {"ageing_ns": task_set.ageing_ns} if task_set.policy == "priority" else {}
    return Scheduler(
        make_policy(task_set.policy, **options),
        StreamPool(
            task_set.stream_count, allowed={task.model: task.streams for task in task_set.tasks}
        ),
        queue_capacity=QUEUE_CAPACITY,
        late={task.model: "run" for task in task_set.tasks},
        preemption=True,
        memory_of={task.model: task.memory for task in task_set.tasks},
        explains=False,
    )


def simulated_responses(
    task_set: TaskSet,
    seed: int | None,
    *,
    until_ns: int,
    offsets_ns: Sequence[int] | None = None,
) -> dict[str, int]:
    """Run a task set with its longest times; return each task's longest response.

    With a seed, first arrivals are drawn, and later ones are up to a tenth of a period further
    apart than they have to be; without, tasks are strictly periodic from `offsets_ns` on.
    """
    dice = random.Random(seed)
    loads = []
    for number, task in enumerate(task_set.tasks):
        assert task.period_ns is not None
        stage = StageLoad(
            task.name,
            task.model,
            len(task.segments_ns),
            task.priority,
            deadline_ns=task.deadline_ns,
        )
        if offsets_ns is not None:
            start_ns = offsets_ns[number]
        else:
            start_ns = dice.choice((0, dice.randrange(task.period_ns)))
        late = 0.1 if seed is not None and dice.random() < 0.5 else 0.0
        arrivals = _sporadic(task.period_ns, start_ns, late, dice.randrange(1 << 30))
        loads.append(Load(task.name, (stage,), arrivals))
    worst: dict[str, int] = {}

    def finished(request: ExecutionRequest) -> None:
        response_ns = request.finished_ns - request.arrival_ns
        worst[request.model] = max(worst.get(request.model, 0), response_ns)

    run(
        scheduler_of(task_set),
        Loads(loads, 0),
        fixed_times({task.model: task.segments_ns for task in task_set.tasks}),
        until_ns=until_ns,
        on_finished=finished,
    )
    return worst


def _sporadic(period_ns: int, start_ns: int, late: float, seed: int) -> Callable[[], Iterator[int]]:
    def make() -> Iterator[int]:
        dice, instant_ns = random.Random(seed), start_ns
        while True:
            yield instant_ns
            instant_ns += period_ns
            if late:
                instant_ns += round(period_ns * late * dice.random())

    return make


# --- small sets, tried exhaustively -------------------------------------------------------------


def small_set(dice: random.Random) -> TaskSet:
    """Draw three tasks in one piece, with periods of 4, 6 and 8 ms that are their deadlines."""
    tasks = []
    for number, period_ms in enumerate((4, 6, 8)):
        cost_ns = dice.choice((1, 2, 3)) * _MS
        name = "abc"[number]
        tasks.append(
            Task(
                name=name,
                model=name,
                source=name,
                segments_ns=(cost_ns,),
                period_ns=period_ms * _MS,
                deadline_ns=period_ms * _MS,
                priority=3 - number,
                memory=name,
            )
        )
    return TaskSet(tuple(tasks), dice.choice(("priority", "edf")))


def is_feasible(task_set: TaskSet) -> bool:
    """Return whether a small set keeps its deadlines for every offset of its tasks.

    Offsets are whole milliseconds, each also one nanosecond earlier, so that a task can just have
    begun when others arrive.
    """
    periods_ns = [task.period_ns or 0 for task in task_set.tasks]
    span_ns = math.lcm(*periods_ns)
    grids = [
        sorted({max(0, at - early) for at in range(0, period_ns, _MS) for early in (0, 1)})
        for period_ns in periods_ns[1:]
    ]
    for offsets_ns in itertools.product(*grids):
        worst = simulated_responses(
            task_set,
            None,
            until_ns=span_ns + max(periods_ns),
            offsets_ns=(periods_ns[0], *offsets_ns),
        )
        if any(worst.get(task.name, 0) > (task.deadline_ns or 0) for task in task_set.tasks):
            return False
    return True


def acceptance(task_sets: Iterable[TaskSet]) -> tuple[int, int]:
    """Return how many sets are proven and how many keep their deadlines for every offset.

    A set that is proven and does not keep them asserts.
    """
    accepted = feasible = 0
    for task_set in task_sets:
        proven, keeps = certify(task_set).is_proven, is_feasible(task_set)
        assert keeps or not proven, f"proven, and misses: {task_set}"
        accepted += proven
        feasible += keeps
    return accepted, feasible
