"""How long inputs may wait, and how many: beyond that an honest error is better than a queue.

`max_queued_inputs` refuses inputs as they come; `queue_timeout` ends those that have had no slot for too long. What was
let in once is not refused: also not by another server, nor when it waits for its next attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.calls import NEVER, Call, Input
from kedge.model.payload import FAILURE, TIMEOUT, ErrorInfo, Result

if TYPE_CHECKING:
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool

MOST_QUEUED = 1_000_000
"""Inputs that may wait in one pool where its function does not say: a few hundred MB of the server's memory."""
MOST_REQUESTS = 2_000
"""And requests, where all that a function does is to answer HTTP: each has a connection, and a person who waits."""
LOOK_S = 0.01
"""Looks are apart by this at least: how late an input may be told that it has waited too long."""
LOOK_PER_CALL_S = 2e-5
"""And by this for every call that waits, which is a hundred times what one costs."""
LEAST_RETRY_S = 0.1


class Patience:
    """Of the callers of one pool."""

    def __init__(self, pool: Pool, plane: Plane) -> None:
        self._pool = pool
        self._plane = plane
        only_web = all(method.web is not None for method in pool.spec.methods)
        self.bound = pool.spec.max_queued_inputs or (MOST_REQUESTS if only_web else MOST_QUEUED)
        """Inputs that may wait."""
        self.allowed_s = pool.spec.queue_timeout or 0.0
        self._look_at: float | None = None

    # ------------------------------------------------------------ how many

    def room(self, inputs: int) -> int:
        """How many of so many new inputs may come in: those that find a slot at once do not wait."""
        pool = self._pool
        free = pool.index.free_slots(pool.maximum)
        if pool.batches is not None:
            free *= pool.batches.size
        if pool.limit is not None:
            free = min(free, pool.limit - pool.in_flight)
        return max(0, min(inputs, self.bound + free - len(pool.queue)))

    def refusal(self) -> Result:
        """What the caller of an input hears that may not even wait."""
        pool = self._pool
        after = self._drain_s()
        text = (
            f"as many inputs wait for {pool.spec.name} as max_queued_inputs={self.bound} allows; try again in about "
            f"{after:.3g} s, or raise max_queued_inputs or max_containers"
        )
        return Result(FAILURE, error=ErrorInfo("ResourceExhaustedError", text, retry_after=after))

    def _drain_s(self) -> float:
        """Seconds until half of what waits has begun, as far as anybody knows."""
        pool = self._pool
        slots = max(1, pool.fleet.ready) * pool.maximum
        if pool.batches is not None:
            slots *= pool.batches.size
        if pool.limit is not None:
            slots = min(slots, pool.limit)
        service_s = pool.service_s if pool.service_s is not None else pool.fleet.startup_s
        return max(LEAST_RETRY_S, self.bound / 2 * service_s / slots)

    # ------------------------------------------------------------ how long

    def watch(self, call: Call, now: float) -> None:
        """Inputs of this call have come to wait."""
        allowed = call.queue_timeout or self.allowed_s
        if allowed:
            self._plan(now + allowed)

    def _plan(self, when: float) -> None:
        if self._look_at is None or when < self._look_at:
            self._look_at = when
            self._plane.agenda.at(when, self._look)

    def _look(self, now: float) -> None:
        if self._look_at is None or now < self._look_at:
            return  # a later look, planned before an earlier one was
        self._look_at = None
        queue = self._pool.queue
        calls = queue.calls()
        late: dict[float, list[Input]] = {}
        coming: float | None = None
        for call in calls:
            allowed = call.queue_timeout or self.allowed_s
            if not allowed:
                continue
            for input in queue.of(call):
                due = input.queued_at + allowed
                if input.granted_at != NEVER or input.losses or input.shared_losses:
                    continue
                if due > now:
                    coming = due if coming is None else min(coming, due)
                    break
                late.setdefault(allowed, []).append(input)
        for allowed, inputs in late.items():
            self._pool.cancel(inputs, self._lateness(allowed))
            self._plane.touch(self._pool)
        if coming is not None:
            self._plan(max(coming, now + LOOK_S, now + LOOK_PER_CALL_S * len(calls)))

    def _lateness(self, allowed: float) -> Result:
        pool = self._pool
        text = (
            f"the input waited longer than queue_timeout={allowed:g} s for {pool.spec.name} "
            f"(running: {pool.in_flight}, containers: {pool.fleet.ready}); raise the timeout, max_containers, or what "
            "else limits them"
        )
        return Result(TIMEOUT, error=ErrorInfo("QueueTimeoutError", text))
