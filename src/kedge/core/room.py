"""Pools that need a container while no machine has room for it, and the containers of others that leave for them.

Idle containers leave before their time where that gives somebody a place, and never where it would not. A pool that
has no container at all comes before one that wants more; a container that has just come up is first given what waits
for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from kedge.model.protocol import Notice

if TYPE_CHECKING:
    from kedge.core.containers import Container
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool

REASON = "its room is needed by another function"
LASTING_S = 2.0
"""A pool that has had no container for so long since there is no room is worth a line in the log."""


class Rooms:
    def __init__(self, plane: Plane) -> None:
        self.leaving: dict[Container, None] = {}
        """Containers that drain: their room is as good as free."""
        self._waiting: dict[Pool, float] = {}
        """Since when; the longest first."""
        self._refused: WeakKeyDictionary[Pool, str] = WeakKeyDictionary()
        """What was said of pools that can have no room."""
        self._freed = False
        self._sought = False
        self._plane = plane

    @property
    def wanted(self) -> bool:
        return bool(self._waiting)

    def wait(self, pool: Pool) -> None:
        """The pool needs a container and no machine has room for it. Its program is told once."""
        self._sought = True
        if pool not in self._waiting:
            since = self._waiting[pool] = self._plane.agenda.now
            self._plane.agenda.at(since + LASTING_S, lambda at: self._mention(pool, since))
            app = self._plane.apps[pool.app]
            if app.session:
                text = f"{pool.spec.name} waits for room: {pool.fleet.waiting_for_room}"
                self._plane.outbox.send(app.session, Notice(pool.app, text, "room"))

    def refuse(self, pool: Pool, reason: str) -> None:
        """No machine will ever have room for it. The log says so once."""
        if self._refused.get(pool) != reason:
            self._refused[pool] = reason
            self._plane.outbox.remark(pool.id, f"{pool.spec.name} cannot run here: {reason}")

    def _mention(self, pool: Pool, since: float) -> None:
        if self._waiting.get(pool) == since and not pool.fleet.containers:
            text = f"{pool.spec.name} has no container and waits for room: {pool.fleet.waiting_for_room}"
            self._plane.outbox.remark(pool.id, text)

    def wait_no_more(self, pool: Pool) -> None:
        self._waiting.pop(pool, None)

    def free(self) -> None:
        """A container has gone, and what it took is there for others."""
        self._freed = bool(self._waiting)

    def freed(self) -> list[Pool]:
        """Those who may try now, once after `free`: who has nothing comes first, then who waits longest."""
        if not self._freed:
            return []
        self._freed = False
        return self._in_order()

    def offer(self, container: Container) -> None:
        """The container has nothing to do just now. It leaves at once for a pool that has none, if its own has several;
        otherwise it leaves only if it is still idle when all is given out."""
        self._sought = True
        fleet = container.pool.fleet
        if fleet.ready > 1 and fleet.spare:
            self._make([container], [pool for pool in self._waiting if not pool.fleet.containers])

    def seek(self) -> None:
        """All has been given out: what is idle now may leave."""
        if self._sought:
            self._sought = False
            pools = [pool for pool in self._plane.pools.values() if pool not in self._waiting]
            idle = [container for pool in pools for container in pool.index.empty()]
            self._make(sorted(idle, key=lambda c: (c.idle_since, c.order)), self._in_order())

    def _in_order(self) -> list[Pool]:
        return sorted(self._waiting, key=lambda pool: bool(pool.fleet.containers))

    def _make(self, idle: list[Container], waiting: list[Pool]) -> None:
        """Retires of these containers, in this order, as many as give one waiting pool its place. When they have gone,
        the next one tries."""
        scheduler = self._plane.scheduler
        leaving = [container.placement for container in self.leaving]
        for pool in waiting:
            resources = pool.spec.resources
            if scheduler.would_place(resources, leaving):
                continue
            for node in scheduler.nodes:
                there = [c for c in idle if c.placement.node == node and c.pool.fleet.spare]
                places = [c.placement for c in there]
                if not scheduler.would_place(resources, leaving + places):
                    continue
                for count, container in enumerate(there, 1):
                    if container.pool.fleet.spare:
                        container.pool.fleet.retire(container, REASON)
                    if scheduler.would_place(resources, leaving + places[:count]):
                        return
