"""Inputs that were in a container when it died: each runs again apart, so that whoever kills containers is found out.

After a container with a hundred inputs has died, one of them may be to blame, or none. Together with others a poison
input would take its neighbours down again and again, and use up their budget. So a suspect gets an empty container,
which takes nothing else until the suspect has ended, or has run for clearly longer than it had when the container died:
then it is cleared. A container that dies with a suspect in it is that input's own loss, and clears what runs beside it.

An empty container goes to a suspect first. Where none is empty and none is coming up, a suspect may join those that are
cleared, unless it has been the reason of a loss already; or the emptiest container is held: it gets nothing more, and
is the suspect's when it is empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.calls import NEVER, Input
from kedge.core.containers import Container, how_it_ended
from kedge.core.overdue import overran_result
from kedge.model.payload import INTERNAL_FAILURE, ErrorInfo, Result
from kedge.model.protocol import ContainerLost

if TYPE_CHECKING:
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool

MAX_LOSSES = 4
"""The infrastructure budget: an input is given up when this many containers were lost while it alone ran in them. High
enough to survive bad luck, low enough that a poison input does not destroy a machine."""
MAX_SHARED_LOSSES = 16
"""Containers that may be lost under an input and others together. It runs alone after the first; only one that was
cleared, and containers that go for reasons of their own, come to more."""
MOST_CONTAINERS = 4
"""Containers that suspects may ask for beyond what others need: one death must not become a stampede of starts."""
CLEARED_AFTER = 2.0
"""Times the seconds that it had run when its container died."""
CLEARED_AFTER_S = 1.0
"""And so many seconds more, since no two runs take the same time."""


class Suspects:
    """Where the suspects of one pool run. Those that wait are in the queue's own lane."""

    def __init__(self, pool: Pool, plane: Plane) -> None:
        self._pool = pool
        self._plane = plane
        self._cells: dict[Container, None] = {}
        """Containers that run a suspect, beside cleared ones at most, or only cleared ones."""
        self._kept: dict[Container, None] = {}
        """Containers that are held until they are empty."""

    @property
    def demand(self) -> int:
        """Slots that they ask for: a whole container each."""
        waiting = len(self._pool.queue.suspects)
        return min(waiting, MOST_CONTAINERS) * self._pool.target if waiting else 0

    @property
    def concern(self) -> bool:
        """Whether `dispatch` has something to do."""
        return bool(self._kept or self._cells or self._pool.queue.suspects)

    def dispatch(self, now: float) -> None:
        """Gives places to those that wait."""
        pool = self._pool
        waiting = pool.queue.suspects
        while waiting and (pool.limit is None or pool.in_flight < pool.limit):
            container = self._empty() or self._cleared(waiting[0])
            if container is None:
                self._keep_one()
                return
            self._confine(container, waiting.popleft(), now)
        if not waiting:
            for container in [*self._kept, *(c for c in self._cells if c.suspect is None)]:
                self._release(container)

    def lost(self, container: Container, message: ContainerLost, blameless: bool) -> None:
        """The container is gone. What was in it runs again on the infrastructure budget: alone, unless the container
        went for a reason of its own. Credited inputs too: the last of them may have been what brought it down."""
        pool, now = self._pool, self._plane.agenda.now
        inmate = container.suspect
        pool.left(container)
        leases = list(container.leases.values())
        culprit = leases[0] if len(leases) == 1 else inmate
        for input in reversed(leases):
            ran_s = 0.0 if input.credited else now - input.granted_at
            pool.release(container, input)
            if input.closed:
                continue
            if input.overran:
                pool.conclude(input, overran_result(pool.spec, input.call), now)
                continue
            input.told_at = NEVER
            input.ran_s = ran_s
            spared = blameless or (inmate is not None and input is not inmate)
            if input is culprit and not blameless:
                input.losses += 1
            else:
                input.shared_losses += 1
            if input.call.stream or input.losses >= MAX_LOSSES or input.shared_losses >= MAX_SHARED_LOSSES:
                pool.conclude(input, lost_result(input, message), now)
            elif spared:
                pool.queue.put_back(input)
            else:
                pool.queue.suspects.appendleft(input)

    def left(self, container: Container) -> None:
        """The container takes nothing more, or is gone."""
        self._cells.pop(container, None)
        self._kept.pop(container, None)
        container.held = False

    def ended(self, container: Container, input: Input) -> None:
        """A slot of a container is free again that is held, or was when it stopped taking inputs."""
        if container.suspect is input:
            container.suspect = None
        if container in self._cells and not container.running:
            self._release(container)

    def check(self) -> None:
        for container in self._cells:
            assert container.held
            assert container.suspect is None or container.suspect in container.leases.values()
        held = [c for c in self._pool.fleet.containers.values() if c.held]
        assert len(held) == len(self._cells) + len(self._kept)

    def _confine(self, container: Container, input: Input, now: float) -> None:
        self._kept.pop(container, None)
        self._cells[container] = None
        container.suspect = input
        self._hold(container)
        self._pool.grant(container, input)
        lease = input.lease
        self._plane.agenda.at(
            now + CLEARED_AFTER * input.ran_s + CLEARED_AFTER_S, lambda at: self._clear(container, input, lease)
        )

    def _clear(self, container: Container, input: Input, lease: int) -> None:
        """It has outlived the moment at which its container died: others may run beside it."""
        if container.suspect is input and input.lease == lease:
            container.suspect = None
            self._plane.touch(self._pool)

    def _hold(self, container: Container) -> None:
        container.held = True
        self._pool.index.remove(container)
        self._pool.credits.hungry.pop(container, None)
        self._pool.credits.recall(container)

    def _release(self, container: Container) -> None:
        self._kept.pop(container, None)
        self._cells.pop(container, None)
        container.held = False
        self._pool.weigh(container)

    def _empty(self) -> Container | None:
        for container in self._kept:
            if container.idle:
                return container
        return next((container for container in self._pool.index.empty() if container.idle), None)

    def _cleared(self, input: Input) -> Container | None:
        """A container with a free slot that runs nothing but cleared inputs, if no better place will come by itself."""
        pool = self._pool
        if input.losses or pool.fleet.starting:
            return None
        method = input.call.method
        cap = pool.method_limits.get(method, pool.maximum)
        for container in self._cells:
            free = container.running < pool.slots_of(container) and container.methods.get(method, 0) < cap
            if free and container.suspect is None:
                return container
        return None

    def _keep_one(self) -> None:
        """Has the emptiest container run dry, unless a place will come by itself."""
        pool = self._pool
        if self._cells or self._kept or pool.fleet.starting:
            return
        container = next(iter(pool.index), None)
        if container is not None:
            self._kept[container] = None
            self._hold(container)


def lost_result(input: Input, message: ContainerLost) -> Result:
    """What the caller of an input hears whose containers kept dying."""
    if input.call.stream:
        text = f"the container died in the middle of the stream: {how_it_ended(message)}"
    else:
        text = (
            f"the container died while it ran this input, {input.losses + input.shared_losses} times, so the input is "
            f"given up; the last time it was {how_it_ended(message)}"
        )
    return Result(INTERNAL_FAILURE, error=ErrorInfo("InternalFailure", text))
