"""When requests are late, and the timers that notice it."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from aegis_pipe.scheduling.model_rules import RuleBook
from aegis_pipe.scheduling.request import ExecutionRequest

_SLACK = 64
_NEVER_NS = 1 << 62


class Deadlines:
    """Timers of the requests that wait or stand at a segment boundary, each at most one.

    Those of requests that have just begun to wait are `newest`, on a list: most requests start at
    once, and their timers never get into the heap, where `settle` puts the others.

    A heap with lazy deletion: an entry counts if its request's `timer_ns` is its instant, and is
    dropped when it comes to the top. When there are twice as many entries as timers were left the
    last time (and a little slack), the others are dropped: O(log n) for each timer, amortised.
    """

    def __init__(self, rules: RuleBook) -> None:
        self._rules = rules
        self.entries: list[tuple[int, int, ExecutionRequest]] = []
        """Entries begin with their instant and none is before the first. That one may have been
        cleared, so that `pop_due` is to be asked from its instant on; earlier it need not be."""
        self.newest: list[ExecutionRequest] = []
        """Always this very list; only to be looked at."""
        self.newest_ns = _NEVER_NS
        """The earliest of those, or earlier."""
        self._entries_max = _SLACK

    def watch_waiting(self, request: ExecutionRequest) -> None:
        """Have a request that begins to wait reported by `pop_due` once it is late.

        That is when less is left than its model needs. Never, if it runs late all the same.
        """
        at_ns = request.deadline_ns
        assert at_ns is not None
        rules = self._rules[request.model]
        if rules.late == "run" or request.degraded_from:
            return
        if rules.needed_ns:
            # Started at the last instant, it would be done on the dot.
            at_ns += 1 - rules.needed_ns
        request.timer_ns = at_ns
        self.newest.append(request)
        if at_ns < self.newest_ns:
            self.newest_ns = at_ns

    def settle(self) -> None:
        """Put the timers of the newest into the heap, where they are still needed."""
        for request in self.newest:
            if request.timer_ns is not None:
                self._watch(request, request.timer_ns)
        self.newest.clear()
        self.newest_ns = _NEVER_NS

    def watch_paused(self, request: ExecutionRequest) -> None:
        """Have a request at a segment boundary reported once its deadline has come."""
        assert request.deadline_ns is not None
        if self._rules[request.model].late == "drop" and not request.degraded_from:
            self._watch(request, request.deadline_ns)

    def _watch(self, request: ExecutionRequest, at_ns: int) -> None:
        entries = self.entries
        request.timer_ns = at_ns
        heappush(entries, (at_ns, request.request_id, request))
        if len(entries) > self._entries_max:
            # By number: one that was cleared and set anew to the same instant is there twice.
            left = {entry[1]: entry for entry in entries if entry[2].timer_ns == entry[0]}
            entries[:] = left.values()
            heapify(entries)
            self._entries_max = 2 * len(entries) + _SLACK

    def clear(self, request: ExecutionRequest) -> None:
        """Forget a request's timer, if it has one."""
        request.timer_ns = None
        entries = self.entries
        if entries and entries[0][2] is request:
            heappop(entries)

    def next_ns(self) -> int | None:
        """Return when the earliest timer is due."""
        if self.newest:
            self.settle()
        entries = self.entries
        while entries:
            at_ns, _, request = entries[0]
            if request.timer_ns == at_ns:
                return at_ns
            heappop(entries)
        return None

    def pop_due(self, now_ns: int) -> ExecutionRequest | None:
        """Take the earliest request whose timer is due, and its timer; the request stays."""
        at_ns = self.next_ns()
        if at_ns is None or at_ns > now_ns:
            return None
        request = heappop(self.entries)[2]
        request.timer_ns = None
        return request

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
