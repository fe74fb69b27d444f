"""What surrounds the plane: how late messages are, how often things fail, and links that keep the order of a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from kedge.sim.world import World


class Conditions(NamedTuple):
    """What the surroundings do. Times are seconds, (low, high); the rest are probabilities unless said otherwise."""

    latency: tuple[float, float] = (0.00005, 0.0002)
    late_frames: float = 0.0
    """Frames that take a hundred times as long."""
    coalesce: float = 0.0
    """Seconds for which a container collects what it has to say, at most."""
    start: tuple[float, float] = (0.005, 0.02)
    imports: tuple[float, float] = (0.01, 0.1)
    exit_hooks: tuple[float, float] = (0.001, 0.05)
    connects_early: float = 0.5
    """Containers that are connected while they import."""
    never_starts: float = 0.0
    crashes_starting: float = 0.0
    fails_starting: float = 0.0
    hangs_starting: float = 0.0
    hangs_exiting: float = 0.0
    crash_rate: float = 0.0
    """Crashes per second of a ready container."""
    out_of_memory: float = 0.3
    """Crashes that are for want of memory."""
    leave_rate: float = 0.0
    """How often per second the code of a ready container asks to leave."""
    wish_rate: float = 0.0
    """How often per second it says how many inputs it takes at once."""
    frames_lost: float = 0.0
    """Crashes that take with them what the container has said last."""

    def healed(self) -> Conditions:
        return self._replace(
            late_frames=0.0,
            never_starts=0.0,
            crashes_starting=0.0,
            fails_starting=0.0,
            hangs_starting=0.0,
            hangs_exiting=0.0,
            crash_rate=0.0,
            leave_rate=0.0,
            wish_rate=0.0,
            frames_lost=0.0,
        )


CALM = Conditions()


class Link:
    """One direction of a connection: frames arrive in order, late, or, once it is cut, not at all."""

    __slots__ = ("_deliver", "_frame", "_framed_at", "_last", "_world", "closed", "cut", "flying", "latency")

    def __init__(self, world: World, deliver: Callable[[list[Any]], None]) -> None:
        self._world = world
        self._deliver = deliver
        self._frame: list[Any] = []
        self._framed_at = -1.0
        self._last = 0.0
        self.latency: float | None = None
        """Seconds of every frame, where a scenario says so."""
        self.closed = False
        self.cut = False
        self.flying = 0
        """Frames on their way."""

    def send(self, message: Any) -> None:
        if self.closed or self.cut:
            return
        world = self._world
        if self._framed_at == world.now:
            self._frame.append(message)
            return
        self._framed_at = world.now
        self._frame = frame = [message]
        self._last = max(self._last, world.now + (world.latency() if self.latency is None else self.latency))
        self.flying += 1
        world.at(self._last, self._arrive, frame)

    def _arrive(self, frame: list[Any]) -> None:
        if frame is self._frame:
            self._framed_at = -1.0
        if not self.cut:
            self._deliver(frame)
        self.flying -= 1
