"""Inputs that were in a container when it died: each runs again apart, so that whoever kills containers is found out.

After a container with a hundred inputs has died, one of them may be to blame, or none. Together with others a poison
input would take its neighbours down again and again, and use up their budget. So a suspect gets an empty container,
which takes nothing else until the suspect has ended, or has run for clearly longer than it had when the container died:
then it is cleared. A container that dies with a suspect in it is that input's own loss, and clears what runs beside it.

An empty container goes to a suspect first. Where none is empty and none is coming up, a suspect may join those that are
cleared, unless it has been the reason of a loss already; or the emptiest container is held: it gets nothing more, and
is the suspect's when it is empty. A container is not held any longer that runs an input which has called its own
function: that call waits for a slot, and so neither would ever end.

Where suspects have all the containers that a pool may have, others would wait until the last of them is cleared. They
need not: they may run beside a suspect that was never the reason of a loss, and are not suspected if it is to blame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kedge.core.calls import NEVER, Input
from kedge.core.containers import Container, how_it_ended, obituary
from kedge.model.ids import input_id
from kedge.model.payload import INTERNAL_FAILURE, ErrorInfo, Result
from kedge.model.protocol import ContainerLost, Notice

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
CLEARED_AFTER = 1.25
"""Times the seconds that it had run when its container died."""
CLEARED_AFTER_S = 0.5
"""And so many seconds more, since no two runs take the same time."""


class Suspects:
    """Where the suspects of one pool run. Those that wait are in the queue's own lane."""

    def __init__(self, pool: Pool, plane: Plane) -> None:
        self._pool = pool
        self._plane = plane
        self._cells: dict[Container, None] = {}
        """Containers that run a suspect, beside cleared ones at most."""
        self._cleared: dict[Container, None] = {}
        """Containers that run cleared ones."""
        self._kept: dict[Container, None] = {}
        """Containers that are held until they are empty."""
        self.concern = False
        """Whether suspects wait, or hold containers: until `dispatch` has found that they do not any more."""

    @property
    def held(self) -> int:
        """Containers that others cannot use."""
        return len(self._cells) + len(self._cleared) + len(self._kept)

    @property
    def wanted(self) -> int:
        """Containers that those who wait ask for beside the held ones."""
        waiting = len(self._pool.queue.suspects)
        if self._pool.limit is not None:
            waiting = min(waiting, self._pool.limit)
        return max(0, min(waiting, MOST_CONTAINERS - self.held))

    @property
    def containers(self) -> list[Container]:
        """The held ones."""
        return [*self._cells, *self._cleared, *self._kept]

    def put_back(self, input: Input) -> None:
        """It waits for a place, before the others."""
        self._pool.queue.suspect(input)
        self.concern = True

    def dispatch(self, now: float) -> None:
        """Gives places to those that wait."""
        pool = self._pool
        waiting = pool.queue.suspects
        if pool.queue.parents:
            self._release_if(self._is_needed)
        while waiting and (pool.limit is None or pool.in_flight < pool.limit):
            container = self._empty()
            place = self._place_beside_cleared() if container is None else (next(iter(waiting)), container)
            if place is None:
                if not (self.held or pool.fleet.starting):
                    self._keep_one()
                break
            pool.queue.pop_suspect(place[0])
            self._confine(*place, now)
        if not waiting:
            self._release_if(lambda container: True)
        self.concern = bool(waiting or self.held)

    def refuge(self, method: str = "") -> Container | None:
        """A place for an input that nobody suspects, where suspects have all the containers there can be."""
        pool = self._pool
        if pool.index.size or pool.fleet.starting or not pool.fleet.complete:
            return None
        for container in self._cells:  # the cleared ones run dry: those who wait must have a container for themselves
            assert container.suspect is not None
            if not container.suspect.losses and self._has_slot(container, method):
                return container
        return None

    def lost(self, container: Container, message: ContainerLost, blameless: bool, starting: bool = False) -> None:
        """The container is gone. What was in it runs again on the infrastructure budget: alone, unless the container
        went for a reason of its own. Credited inputs too: the last of them may have been what brought it down."""
        pool, now = self._pool, self._plane.agenda.now
        inmate = container.suspect
        pool.left(container)
        leases = list(container.leases.values())
        if not blameless:
            missed = sum(not input.closed for input in leases)  # nobody waits for what was cancelled
            if text := obituary(message, missed, starting):
                self._plane.outbox.remark(pool.id, text, container.id)
            if missed:
                self._say(missed, message)
        culprit = leases[0] if len(leases) == 1 else inmate
        for input in reversed(leases):
            ran_s = 0.0 if input.credited else now - input.granted_at
            pool.release(container, input)
            if input.closed:
                continue
            if input.overran:
                pool.conclude(input, pool.overdue.overran_result(input.call), now)
                continue
            input.told_at = NEVER
            input.ran_s = ran_s
            spared = input is not inmate and (blameless or inmate is not None)
            if input is culprit and not blameless:
                input.losses += 1
            else:
                input.shared_losses += 1
            if input.call.stream or input.losses >= MAX_LOSSES or input.shared_losses >= MAX_SHARED_LOSSES:
                pool.conclude(input, lost_result(input, message), now)
            elif spared:
                pool.queue.put_back(input)
            else:
                self.put_back(input)

    def _say(self, inputs: int, message: ContainerLost) -> None:
        """A container has died, and nobody knows yet what will become of its inputs."""
        app = self._plane.apps[self._pool.app]
        if app.session:
            text = f"a container of {self._pool.spec.name} died with {inputs} input{'s' * (inputs != 1)} in it: it was "
            text += how_it_ended(message)
            text += "; they run again apart from each other" if inputs > 1 else ""
            self._plane.outbox.send(app.session, Notice(self._pool.app, text, "warning"))

    def left(self, container: Container) -> None:
        """The container takes nothing more, or is gone."""
        self._cells.pop(container, None)
        self._cleared.pop(container, None)
        self._kept.pop(container, None)
        container.held = False

    def ended(self, container: Container, input: Input) -> None:
        """A slot of a container is free again that is held, or was when it stopped taking inputs."""
        if container.suspect is input:
            self._absolve(container)
        if container in self._cleared and not container.running:
            self._release(container)

    def check(self) -> None:
        assert self.concern or not (self.held or self._pool.queue.suspects)
        for container in self._cells:
            assert container.suspect in container.leases.values()
        for container in self._cleared:
            assert container.suspect is None
            assert container.running
        assert self._pool.queue.suspects or not (self._cleared or self._kept), "containers are held for nobody"
        held = [c for c in self._pool.fleet.containers.values() if c.held]
        assert len(held) == self.held
        assert all(c in self._cells or c in self._cleared or c in self._kept for c in held)

    def _confine(self, input: Input, container: Container, now: float) -> None:
        self._kept.pop(container, None)
        self._cleared.pop(container, None)
        self._cells[container] = None
        container.suspect = input
        self._hold(container)
        self._pool.grant(container, input)
        lease = input.lease
        self._plane.agenda.at(
            now + CLEARED_AFTER * input.ran_s + CLEARED_AFTER_S, lambda at: self._clear(container, lease)
        )

    def _clear(self, container: Container, lease: int) -> None:
        """It has outlived the moment at which its container died: others may run beside it."""
        if container.suspect is not None and container.suspect.lease == lease:
            self._absolve(container)
            self._plane.touch(self._pool)

    def _absolve(self, container: Container) -> None:
        """Nobody in it is suspected any more."""
        container.suspect = None
        if container in self._cells:
            del self._cells[container]
            self._cleared[container] = None

    def _hold(self, container: Container) -> None:
        container.held = True
        self._pool.index.remove(container)
        self._pool.credits.hungry.pop(container, None)
        self._pool.credits.recall(container)

    def _release_if(self, asked: Callable[[Container], bool]) -> None:
        """Lets others into containers in which nobody is suspected."""
        for container in [*self._kept, *self._cleared]:
            if asked(container):
                self._release(container)

    def _release(self, container: Container) -> None:
        self.left(container)
        self._pool.weigh(container)

    def _empty(self) -> Container | None:
        for container in self._kept:
            if container.idle:
                return container
        return next((container for container in self._pool.index.empty() if container.idle), None)

    def _place_beside_cleared(self) -> tuple[Input, Container] | None:
        """A suspect, and a free slot beside cleared inputs for it, if no better place will come by itself."""
        pool = self._pool
        if not self._cleared or pool.fleet.starting:
            return None
        input = next((input for input in pool.queue.suspects if not input.losses), None)
        if input is None:
            return None
        for container in self._cleared:
            if self._has_slot(container, input.call.method):
                return input, container
        return None

    def _has_slot(self, container: Container, method: str) -> bool:
        """Whether a held container may run one more input of a method."""
        pool = self._pool
        cap = pool.method_limits.get(method, pool.maximum)
        free = container.running < pool.slots.of(container) and container.methods.get(method, 0) < cap
        return free and not container.used

    def _is_needed(self, container: Container) -> bool:
        """Whether an input of the container waits for one in the queue."""
        parents = self._pool.queue.parents
        return bool(parents) and any(input_id(i.call.id, i.index) in parents for i in container.leases.values())

    def _keep_one(self) -> None:
        """Has the emptiest container run dry."""
        pool = self._pool
        container = next(iter(pool.index), None)
        if container is not None and not self._is_needed(container):
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
