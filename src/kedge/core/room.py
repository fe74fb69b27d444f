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
    from kedge.core.scheduler import Placement

REASON = "its room is needed by another function"
LASTING_S = 2.0
"""A pool that has waited for so long is worth a notice to its program, and where it has no container at all, a line in
the log. What has room again sooner is nobody's concern."""


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
        """The pool needs a container and no machine has room for it. Where that lasts, its program is told once."""
        self._sought = True
        if pool not in self._waiting:
            since = self._waiting[pool] = self._plane.agenda.now
            self._plane.agenda.at(since + LASTING_S, lambda at: self._mention(pool, since))

    def refuse(self, pool: Pool, reason: str) -> None:
        """No machine will ever have room for it. The log says so once."""
        if self._refused.get(pool) != reason:
            self._refused[pool] = reason
            self._plane.outbox.remark(pool.id, f"{pool.spec.name} cannot run here: {reason}")

    def _mention(self, pool: Pool, since: float) -> None:
        if self._waiting.get(pool) != since:
            return
        app, reason = self._plane.apps[pool.app], pool.fleet.waiting_for_room
        if app.session:
            text = f"{pool.spec.name} waits for room: {reason}"
            self._plane.outbox.send(app.session, Notice(pool.app, text, "room"))
        if not pool.fleet.containers:
            self._plane.outbox.remark(pool.id, f"{pool.spec.name} has no container and waits for room: {reason}")

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

    def relieve(self, node: str, device: int) -> None:
        """More of a shared device is in use than it has: who is idle on it leaves, the longest idle first, until the
        others have what they use."""
        plane = self._plane
        slab = plane.scheduler.nodes[node].devices.slabs[device]
        over = slab.vram - slab.device.memory
        over -= sum(_of(container.placement, node, device) for container in self.leaving)
        idle = [container for pool in plane.pools.values() for container in pool.index.empty()]
        for container in sorted(idle, key=lambda c: (c.idle_since, c.order)):
            there = _of(container.placement, node, device)
            if over > 0 and there and container.pool.fleet.spare:
                container.pool.fleet.retire(container, "its GPU is short of memory")
                over -= there

    def _in_order(self) -> list[Pool]:
        return sorted(self._waiting, key=lambda pool: bool(pool.fleet.containers))

    def _make(self, idle: list[Container], waiting: list[Pool]) -> None:
        """Retires of these containers, in this order, as many as give one waiting pool its place. When they have gone,
        the next one tries."""
        scheduler = self._plane.scheduler
        leaving = [container.placement for container in self.leaving]
        for pool in waiting:
            if self._fits(pool, leaving):
                continue
            for node in scheduler.nodes:
                going = self._enough([c for c in idle if c.placement.node == node], pool, leaving)
                for container in going:
                    container.pool.fleet.retire(container, REASON)
                if going:
                    return

    def _enough(self, idle: list[Container], pool: Pool, leaving: list[Placement]) -> list[Container]:
        """Of these, in their order, those whose leaving gives the pool its place, and none that need not go; nothing
        where all of them together would not."""
        spare: dict[Pool, int] = {}
        chosen: list[Container] = []
        for container in idle:
            left = spare.get(container.pool)
            left = container.pool.fleet.surplus if left is None else left
            if left > 0:
                spare[container.pool] = left - 1
                chosen.append(container)
        groups = [chosen]
        if pool.spec.resources.gpus:  # one device is enough, mostly, and then nobody leaves another
            by_device: dict[tuple[int, ...], list[Container]] = {}
            for container in chosen:
                by_device.setdefault(container.placement.devices, []).append(container)
            groups += by_device.values()
        enough = [group for group in groups if self._fits(pool, leaving + [c.placement for c in group])]
        return min((self._needed(group, group, pool, leaving) for group in enough), key=len, default=[])

    def _needed(
        self, chosen: list[Container], part: list[Container], pool: Pool, leaving: list[Placement]
    ) -> list[Container]:
        """Of those chosen all that must go, when as many as possible of this part stay: the later ones rather than the
        earlier. By halves, so that many who stay cost few looks."""
        going = set(part)
        others = [c for c in chosen if c not in going]
        if self._fits(pool, leaving + [c.placement for c in others]):
            return others
        if len(part) > 1:
            half = len(part) // 2
            chosen = self._needed(chosen, part[half:], pool, leaving)
            chosen = self._needed(chosen, part[:half], pool, leaving)
        return chosen

    def _fits(self, pool: Pool, without: list[Placement]) -> bool:
        plane = self._plane
        return plane.scheduler.would_place(pool.spec.resources, without, plane.vram.peak(pool))


def _of(place: Placement, node: str, device: int) -> int:
    """MiB of a shared device that a place has."""
    if place.node != node or not place.vram or device not in place.devices:
        return 0
    return place.vram[place.devices.index(device)]
