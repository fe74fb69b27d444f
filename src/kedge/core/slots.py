"""How many inputs a container takes at once: as declared, as changed while it runs, or as its own code says.

Fewer slots interrupt nothing: nothing new comes until enough has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from kedge.core.containers import READY, STARTING, Container
from kedge.model.protocol import ConcurrencyChanged
from kedge.model.spec import Concurrency

if TYPE_CHECKING:
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool


class Slots:
    """Of the containers of one pool."""

    def __init__(self, pool: Pool, plane: Plane) -> None:
        self._pool = pool
        self._plane = plane
        self._narrow: dict[Container, None] = {}
        """Containers that take fewer inputs by their own wish."""

    def of(self, container: Container) -> int:
        """How many inputs it takes at once."""
        return min(container.slots or self._pool.maximum, self._pool.maximum)

    @property
    def withheld(self) -> int:
        """Slots below target that ready containers do not offer, because their own code says so."""
        if not self._narrow:
            return 0
        ready = (c for c in self._narrow if c.state == READY and not c.held)
        return sum(max(0, self._pool.target - max(c.slots, c.running)) for c in ready)

    def change(self, container: Container, slots: int) -> None:
        """The container's own code says how many inputs it takes at once."""
        container.slots = slots if slots < self._pool.maximum else 0
        if container.slots and container.state in (STARTING, READY):
            self._narrow[container] = None
        else:
            self._narrow.pop(container, None)
        self._fewer(container)

    def change_all(self, concurrency: Concurrency) -> None:
        """From now on every container takes so many."""
        pool = self._pool
        pool.spec = replace(pool.spec, concurrency=concurrency)
        pool.target, pool.maximum = concurrency.target_inputs, concurrency.max_inputs
        for container in pool.fleet.containers.values():
            self._plane.outbox.send(container.id, ConcurrencyChanged(concurrency))
            self._fewer(container)

    def left(self, container: Container) -> None:
        """The container takes nothing more."""
        self._narrow.pop(container, None)

    def _fewer(self, container: Container) -> None:
        """It may have more inputs than it is to take."""
        container.most = container.running
        self._pool.credits.recall(container)
        self._pool.weigh(container)
