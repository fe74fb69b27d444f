"""Which container gets the next input: fullest below target first, then least loaded up to the maximum.

Filling the fullest container first lets the others become empty and leave; bursting spreads the load instead. Among
equals the oldest wins, so that the youngest empties. Costs do not grow with the number of containers: one heap per
load, found through a bit mask of the loads in use. A container has at most one entry per heap; entries that are out
of date are dropped when they surface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar


class Loaded(Protocol):
    """What the index needs to know of a container. `load`, `heaped` and `indexed` are the index's own."""

    order: int
    """Age: smaller is older. Unique within an index."""
    load: int
    heaped: int
    """Bit b is set while the heap of load b has an entry of this container."""
    indexed: bool


SLACK = 64
"""Entries out of date that a heap may hold beside one for each container and as many again."""

C = TypeVar("C", bound=Loaded)


class LoadIndex(Generic[C]):
    """The containers that take inputs, by the number of slots taken."""

    def __init__(self) -> None:
        self._heaps: list[list[tuple[int, C]]] = []
        self._counts: list[int] = []
        self._used = 0
        self.size = 0

    def add(self, container: C, load: int) -> None:
        assert not container.indexed
        container.indexed = True
        container.heaped = 0
        container.load = load
        self.size += 1
        self._enter(container, load)

    def remove(self, container: C) -> None:
        """Does nothing where the container is not in the index."""
        if container.indexed:
            container.indexed = False
            self.size -= 1
            self._leave(container.load)

    def move(self, container: C, load: int) -> None:
        """Sets the load of a container that is in the index."""
        self._leave(container.load)
        container.load = load
        self._enter(container, load)

    def pick(self, target: int, maximum: int) -> C | None:
        """The container for the next input; None where every one has `maximum` inputs."""
        below = self._used & ((1 << target) - 1)
        if below:
            return self._oldest(below.bit_length() - 1)
        above = self._used & ((1 << maximum) - 1)
        if above:
            return self._oldest((above & -above).bit_length() - 1)
        return None

    def pick_where(self, target: int, maximum: int, accept: Callable[[C], bool]) -> C | None:
        """Like `pick`, among those that `accept`. Looks at every container if it must."""
        loads = list(range(min(target, len(self._heaps)) - 1, -1, -1))
        loads += range(target, min(maximum, len(self._heaps)))
        for load in loads:
            if self._used >> load & 1:
                candidates = [c for _, c in self._heaps[load] if c.indexed and c.load == load and accept(c)]
                if candidates:
                    return min(candidates, key=lambda c: c.order)
        return None

    def free_slots(self, maximum: int) -> int:
        return sum(count * (maximum - load) for load, count in enumerate(self._counts[:maximum]))

    def __iter__(self) -> Iterator[C]:
        """Every container of the index, the emptiest first."""
        for load, heap in enumerate(self._heaps):
            for _, container in heap:
                if container.indexed and container.load == load:
                    yield container

    def empty(self) -> Iterator[C]:
        """Containers without a load."""
        for _, container in self._heaps[0] if self._used & 1 else ():
            if container.indexed and not container.load:
                yield container

    def _enter(self, container: C, load: int) -> None:
        while load >= len(self._heaps):
            self._heaps.append([])
            self._counts.append(0)
        self._counts[load] += 1
        bit = 1 << load
        self._used |= bit
        if not container.heaped & bit:
            container.heaped |= bit
            heap = self._heaps[load]
            heappush(heap, (container.order, container))
            if len(heap) > 2 * self.size + SLACK:
                self._sweep(load)

    def _sweep(self, load: int) -> None:
        """Drops entries that are out of date: those behind a valid one would not surface."""
        kept = []
        for entry in self._heaps[load]:
            container = entry[1]
            if container.indexed and container.load == load:
                kept.append(entry)
            else:
                container.heaped &= ~(1 << load)
        heapify(kept)
        self._heaps[load] = kept

    def _leave(self, load: int) -> None:
        self._counts[load] -= 1
        if not self._counts[load]:
            self._used &= ~(1 << load)

    def _oldest(self, load: int) -> C:
        heap = self._heaps[load]
        while True:
            container = heap[0][1]
            if container.indexed and container.load == load:
                return container
            heappop(heap)
            container.heaped &= ~(1 << load)
