"""`@batched`: inputs that wait become batches of up to `max_batch_size`, and a batch takes one slot.

A full batch goes at once. One that is not full goes when its first input has waited for `wait_ms`, and grows while no
slot is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.calls import Batch, Input
from kedge.core.containers import Container
from kedge.model.spec import Batching, FunctionSpec

if TYPE_CHECKING:
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool


class Batches:
    """Forms the batches of one pool."""

    def __init__(self, pool: Pool, plane: Plane, batching: Batching) -> None:
        limit = pool.limit
        self.size = batching.max_batch_size if limit is None else min(batching.max_batch_size, limit)
        """Inputs of a full batch."""
        self._wait_s = batching.wait_ms / 1000
        self.method = next(method.name for method in pool.spec.methods if method.batching is not None)
        """The only one of its class."""
        self._pool = pool
        self._plane = plane
        self._look_at: float | None = None

    def slots(self, inputs: int) -> int:
        """Slots that so many inputs take."""
        return -(-inputs // self.size)

    def dispatch(self, now: float) -> None:
        """Grants slots to batches that are full or have waited for long enough."""
        pool = self._pool
        queue = pool.queue
        while queue.ready:
            room = self.size if pool.limit is None else min(self.size, pool.limit - pool.in_flight)
            if room < min(self.size, queue.ready):
                return  # as many as can run at once do; the next to end brings this back
            if queue.ready < self.size:
                # The first of the call whose turn it is: nearly always the one that has waited longest.
                due = queue.first().queued_at + self._wait_s
                if now < due:
                    self._look_again(due)
                    return
            container = pool.pick_for(self.method)
            if container is None:
                return
            self.grant(container, [queue.pop() for _ in range(min(self.size, queue.ready))])

    def grant(self, container: Container, inputs: list[Input]) -> None:
        """Gives the container a batch, for one slot."""
        pool, count = self._pool, len(inputs)
        batch = Batch(count)
        number = 0
        for input in inputs:
            input.batch = batch
            number = pool.lease(container, input, number, count)
        container.shared += count - 1
        pool.shared += count - 1
        pool.take_slots(container, self.method)

    def _look_again(self, due: float) -> None:
        if self._look_at is None or due < self._look_at:
            self._look_at = due
            self._plane.agenda.at(due, self._look)

    def _look(self, now: float) -> None:
        if self._look_at is None or now < self._look_at:
            return  # a later look, planned before an earlier one was
        self._look_at = None
        self._plane.touch(self._pool)


def batching_of(spec: FunctionSpec) -> Batching | None:
    """How the inputs of a function are batched: a class that takes batches has one method."""
    return next((method.batching for method in spec.methods if method.batching is not None), None)
