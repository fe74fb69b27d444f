"""Inputs that were in a container when it died: each runs again alone, so that whoever kills containers is found out.

After a container with a hundred inputs has died, one of them may be to blame, or none. Together with others a poison
input would take its neighbours down again and again, and use up their budget. So a suspect gets an empty container,
which takes nothing else until the suspect has ended, or has run for clearly longer than it had when the container died:
then it is cleared. A container that dies with a suspect in it is that input's own loss.

An empty container goes to a suspect first. Where none is empty and none is coming up, the emptiest one is held: it gets
nothing more, and is the suspect's when it is empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.calls import NEVER, Input
from kedge.core.containers import READY, Container, how_it_ended
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
        self._cells: dict[Container, Input] = {}
        """Containers that run one suspect and nothing else."""
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
        return bool(self._kept or self._pool.queue.suspects)

    def dispatch(self, now: float) -> None:
        """Gives empty containers to those that wait."""
        pool = self._pool
        waiting = pool.queue.suspects
        while waiting and (pool.limit is None or pool.in_flight < pool.limit):
            container = self._empty()
            if container is None:
                self._keep_one()
                return
            self._confine(container, waiting.popleft(), now)
        if not waiting:
            for container in list(self._kept):
                self._release(container)

    def lost(self, container: Container, message: ContainerLost, blameless: bool) -> None:
        """The container is gone. What was in it runs again on the infrastructure budget: alone, unless the container
        went for a reason of its own. Credited inputs too: the last of them may have been what brought it down."""
        pool, now = self._pool, self._plane.agenda.now
        pool.left(container)
        alone = len(container.leases) == 1
        for input in reversed(list(container.leases.values())):
            ran_s = 0.0 if input.credited else now - input.granted_at
            pool.release(container, input)
            if input.closed:
                continue
            if input.overran:
                pool.conclude(input, overran_result(pool.spec, input.call), now)
                continue
            input.told_at = NEVER
            input.ran_s = ran_s
            if alone and not blameless:
                input.losses += 1
            else:
                input.shared_losses += 1
            if input.call.stream or input.losses >= MAX_LOSSES or input.shared_losses >= MAX_SHARED_LOSSES:
                pool.conclude(input, lost_result(input, message), now)
            elif blameless:
                pool.queue.put_back(input)
            else:
                pool.queue.suspects.appendleft(input)

    def left(self, container: Container) -> None:
        """The container takes nothing more, or is gone."""
        self._cells.pop(container, None)
        self._kept.pop(container, None)
        container.held = False

    def ended(self, container: Container, input: Input) -> None:
        """The slot of an input is free again."""
        if self._cells.get(container) is input:
            del self._cells[container]
            container.held = False

    def check(self) -> None:
        for container, input in self._cells.items():
            assert container.held
            assert list(container.leases.values()) == [input], f"{container} runs a suspect beside others"
        held = [c for c in self._pool.fleet.containers.values() if c.held]
        assert len(held) == len(self._cells) + len(self._kept)

    def _confine(self, container: Container, input: Input, now: float) -> None:
        self._kept.pop(container, None)
        self._cells[container] = input
        container.held = True
        self._pool.index.remove(container)
        self._pool.credits.hungry.pop(container, None)
        self._pool.grant(container, input)
        lease = input.lease
        self._plane.agenda.at(
            now + CLEARED_AFTER * input.ran_s + CLEARED_AFTER_S, lambda at: self._clear(container, input, lease)
        )

    def _clear(self, container: Container, input: Input, lease: int) -> None:
        """It has outlived the moment at which its container died: others may run beside it."""
        if self._cells.get(container) is input and input.lease == lease:
            del self._cells[container]
            self._release(container)
            self._plane.touch(self._pool)

    def _release(self, container: Container) -> None:
        self._kept.pop(container, None)
        container.held = False
        self._pool.weigh(container)

    def _empty(self) -> Container | None:
        for container in self._kept:
            if container.idle:
                return container
        return next((container for container in self._pool.index.empty() if container.idle), None)

    def _keep_one(self) -> None:
        """Has the emptiest container run dry, unless a place for a suspect will come by itself."""
        pool = self._pool
        if self._cells or self._kept or pool.fleet.starting:
            return
        container = next(iter(pool.index), None)
        if container is not None and container.state == READY:
            self._kept[container] = None
            container.held = True
            pool.index.remove(container)
            pool.credits.hungry.pop(container, None)
            pool.credits.recall(container)


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
