"""descriptors and timers, one thread, nothing else. asyncio would double the supervisor's memory."""

from __future__ import annotations

import heapq
import itertools
import selectors
import time
from collections.abc import Callable

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

Action = Callable[[], None]


class Timer:
    """A planned action; `cancel` takes it back."""

    __slots__ = ("action",)

    def __init__(self, action: Action) -> None:
        self.action: Action | None = action

    def cancel(self) -> None:
        self.action = None


class Loop:
    """Calls an action when a descriptor is ready or a time has come. Actions must not block."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._running = False

    def watch(self, descriptor: int, action: Action, events: int = READ) -> None:
        """Calls `action` whenever the descriptor is ready. Replaces what was watched on it before."""
        self.forget(descriptor)
        self._selector.register(descriptor, events, action)

    def forget(self, descriptor: int) -> None:
        """Watches it no more; call this before closing it."""
        if descriptor in self._selector.get_map():
            self._selector.unregister(descriptor)

    def later(self, seconds: float, action: Action) -> Timer:
        """Calls `action` once, `seconds` from now."""
        timer = Timer(action)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def stop(self) -> None:
        """`run` returns after the present action."""
        self._running = False

    def run(self) -> None:
        """Runs until `stop`."""
        self._running = True
        while self._running:
            self._turn()

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._patience()):
            # An action of this round may have closed the descriptor, or watched its successor of the same number.
            if self._running and self._selector.get_map().get(key.fd) is key:
                key.data()
        while self._running and self._timers and self._timers[0][0] <= time.monotonic():
            timer = heapq.heappop(self._timers)[2]
            if timer.action is not None:
                timer.action()

    def _patience(self) -> float | None:
        while self._timers and self._timers[0][2].action is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
