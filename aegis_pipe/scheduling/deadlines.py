"""When requests are late, and the timers that notice it."""

from __future__ import annotations

from aegis_pipe.scheduling.model_rules import RuleBook
from aegis_pipe.scheduling.request import ExecutionRequest
from aegis_pipe.scheduling.request_heap import RequestHeap


class Deadlines:
    """Timers of the requests that wait or stand at a segment boundary, each at most one."""

    def __init__(self, rules: RuleBook) -> None:
        self._rules = rules
        self._timers = RequestHeap()
        self.entries = self._timers.heap
        """Entries begin with their instant and none is before the first. That one may have been
        cleared, so that `pop_due` is to be asked from its instant on; earlier it need not be."""
        self.clear = self._timers.discard
        """Forgets a request's timer, if it has one."""

    def watch_waiting(self, request: ExecutionRequest) -> None:
        """Have a request that begins to wait reported by `pop_due` once it is late.

        That is when less is left than its model needs. Never, if it runs late all the same.
        """
        assert request.deadline_ns is not None
        rules = self._rules[request.model]
        if rules.late == "run" or request.degraded_from:
            return
        at_ns = request.deadline_ns
        if rules.needed_ns:
            # Started at the last instant, it would be done on the dot.
            at_ns += 1 - rules.needed_ns
        self._timers.push((at_ns, request.request_id), request)

    def watch_paused(self, request: ExecutionRequest) -> None:
        """Have a request at a segment boundary reported once its deadline has come."""
        assert request.deadline_ns is not None
        if self._rules[request.model].late == "drop" and not request.degraded_from:
            self._timers.push((request.deadline_ns, request.request_id), request)

    def next_ns(self) -> int | None:
        """Return when the earliest timer is due."""
        head = self._timers.head()
        return None if head is None else head[0]

    def pop_due(self, now_ns: int) -> ExecutionRequest | None:
        """Take the earliest request whose timer is due, and its timer; the request stays."""
        head = self._timers.head()
        return None if head is None or head[0] > now_ns else self._timers.pop()

    def is_hopeless(self, request: ExecutionRequest, now_ns: int) -> bool:
        """Return whether a request that arrives is to be refused, being late already."""
        rules = self._rules[request.model]
        if rules.needed_ns is None or rules.late != "drop" or request.deadline_ns is None:
            return False
        return now_ns + rules.needed_ns > request.deadline_ns

    def is_wanted(self, request: ExecutionRequest, now_ns: int) -> bool:
        """Return whether anybody wants the result of a request that has started."""
        if request.cancel_reason is not None:
            return False
        if request.deadline_ns is None or now_ns <= request.deadline_ns:
            return True
        return request.degraded_from != "" or self._rules[request.model].late != "drop"
