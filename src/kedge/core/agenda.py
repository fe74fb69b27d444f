"""What is due when. The shell sleeps until `next`, the simulator jumps there."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

Duty = Callable[[float], None]
"""Called with the time it is. It looks for itself whether there is still anything to do."""


class Agenda:
    def __init__(self) -> None:
        self._due: list[tuple[float, int, Duty]] = []
        self._sequence = 0
        self.now = 0.0
        """The time of the event that is being handled."""

    def at(self, when: float, duty: Duty) -> None:
        self._sequence += 1
        heappush(self._due, (when, self._sequence, duty))

    @property
    def next(self) -> float | None:
        return self._due[0][0] if self._due else None

    def run(self, now: float) -> None:
        """Carries out what is due, and what that makes due at once."""
        self.now = now
        while self._due and self._due[0][0] <= now:
            heappop(self._due)[2](now)
