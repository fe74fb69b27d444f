"""Inputs granted ahead: while all slots are taken and inputs are shorter than the round trip, some wait in containers.

A credited input is granted, not started: it can be called back until it starts, and is no attempt until then. Only
inputs shorter than CREDIT_SERVICE_S are credited, and never more than CREDIT_WINDOW_S of work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.calls import NEVER
from kedge.core.containers import GONE, Container
from kedge.model.protocol import Dispatch, InputsRecalled

if TYPE_CHECKING:
    from kedge.core.calls import Input
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool

CREDIT_SERVICE_S = 0.005
"""Inputs longer than this hide the round trip by themselves."""
CREDIT_WINDOW_S = 0.002
"""Seconds of work a container may hold ahead: some tens of round trips, so that frames carry many inputs, and yet so
little that calling it back is never urgent."""
MAX_CREDITS = 256
"""Credits of one container at most: what 2 ms of empty functions come to."""
STALL_S = 0.01
"""A container that holds credits and reports nothing for this long has met a long input: its credits are called
back."""


class Credits:
    """The credits of one pool."""

    def __init__(self, pool: Pool, plane: Plane) -> None:
        self.count = 0
        """Inputs that are credited, over all containers."""
        self.hungry: dict[Container, None] = {}
        """Full containers whose credit window is at most half used."""
        self._pool = pool
        self._plane = plane

    def window(self) -> int:
        """How many inputs one container may hold ahead."""
        pool = self._pool
        service_s = pool.service_s
        if service_s is None or service_s > CREDIT_SERVICE_S or pool.limit is not None or pool.batches is not None:
            return 0
        return min(MAX_CREDITS, int(CREDIT_WINDOW_S * pool.maximum / max(service_s, 1e-7)))

    def give(self, now: float) -> None:
        """Grants ahead what waits. Every slot is taken."""
        window = self.window()
        if not window:
            return
        queue, hungry = self._pool.queue, self.hungry
        again: list[Container] = []
        while hungry and queue.ready:
            container = next(iter(hungry))
            share = -(-queue.ready // len(hungry))
            del hungry[container]
            if container.recalled or not container.indexed:
                continue
            if not self._fill(container, min(window - len(container.credits), share), now):
                again.append(container)
                break
            if len(container.credits) * 2 <= window:
                again.append(container)
        for container in again:
            hungry[container] = None

    def weigh(self, container: Container, running: int) -> None:
        """The number of its slots that are taken has changed."""
        if running < self._pool.maximum:
            self.hungry.pop(container, None)
        elif len(container.credits) * 2 <= self.window():
            self.hungry[container] = None

    def promote(self, container: Container, lease: int, now: float) -> None:
        """A credited input has started: it has a slot."""
        input = container.credits.pop(lease)
        input.credited = False
        if input.granted_at == NEVER:
            self._pool.waits.add(now - input.queued_at)
        input.granted_at = now
        self.count -= 1
        self._pool.running += 1
        if input.call.timeout:
            self._pool.overdue.granted(input)

    def forget(self, container: Container, input: Input) -> None:
        """The credit is over without a start."""
        del container.credits[input.lease]
        input.credited = False
        self.count -= 1

    def recall(self, container: Container) -> None:
        """Asks for all that the container holds ahead."""
        if container.credits and container.state != GONE and not container.recalled:
            container.recalled = True
            self._plane.outbox.send(container.id, InputsRecalled(list(container.credits)))

    def _fill(self, container: Container, credits: int, now: float) -> bool:
        """Grants inputs ahead; False where the next one must not be."""
        queue = self._pool.queue
        for _ in range(credits):
            input = queue.pop()
            if input.losses or input.shared_losses or input.call.stream:
                # What was in a container that died runs in a slot of its own, known to have started.
                queue.put_back(input)
                return False
            self._credit(container, input)
            if not container.stall_watched:
                container.stall_watched = True
                self._plane.agenda.at(now + STALL_S, lambda at: self._look_for_stall(container, at))
        return True

    def _credit(self, container: Container, input: Input) -> None:
        lease = self._plane.new_lease(input)
        input.container = container
        input.credited = True
        container.leases[lease] = container.credits[lease] = input
        self.count += 1
        call = input.call
        self._plane.outbox.dispatch(
            container.id,
            Dispatch(
                lease, call.id, input.index, call.method, input.payload, input.attempts, True, call.stream, call.timeout
            ),
        )

    def _look_for_stall(self, container: Container, now: float) -> None:
        container.stall_watched = False
        if not container.credits or container.state == GONE or container.recalled:
            return
        due = container.finished_at + STALL_S
        if now < due:
            container.stall_watched = True
            self._plane.agenda.at(due, lambda at: self._look_for_stall(container, at))
            return
        self.recall(container)
