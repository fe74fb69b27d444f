"""What containers on shared devices really use: the most that was measured of each pool, and what follows from it.

Code may take more than it declared: nobody can stop it, but nobody else should be put where it would not fit. So the
measured peak counts like a declaration from then on, for those that run and those that come; and where a device turns
out to be too small, idle containers leave it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from kedge.core.devices import asked, gib
from kedge.model.protocol import VramMeasured

if TYPE_CHECKING:
    from kedge.core.containers import Container
    from kedge.core.plane import Plane
    from kedge.core.pool import Pool


class Vram:
    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._peaks: WeakKeyDictionary[Pool, int] = WeakKeyDictionary()
        self._told: WeakKeyDictionary[Pool, bool] = WeakKeyDictionary()

    def peak(self, pool: Pool) -> int:
        """MiB that a container of this pool was seen to use of one device; 0: not seen."""
        return self._peaks.get(pool, 0)

    def measured(self, message: VramMeasured, now: float, sender: str) -> None:
        for id, used in message.used.items():
            container = self._plane.containers.get(id)
            if container is not None and container.placement.vram:
                self._use(container, used)

    def _use(self, container: Container, used: int) -> None:
        pool, place = container.pool, container.placement
        self._peaks[pool] = max(used, self._peaks.get(pool, 0))
        if used <= min(place.vram):
            return
        container.placement = self._plane.scheduler.grown(place, used)
        for device in place.devices:
            self._plane.rooms.relieve(place.node, device)
        if pool not in self._told:
            self._told[pool] = True
            self._plane.outbox.remark(
                pool.id,
                f"{pool.spec.name} uses {gib(used)} of GPU memory, and declares {asked(pool.spec.resources)}, which is "
                f"{gib(min(place.vram))} here: from now on its containers are counted with what they use. Declare "
                f'vram="{-(-used // 1024)}Gi" to have that room from the start',
                container.id,
            )
