"""What the supervisor holds of one container, from its launch to its end."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Protocol

import msgspec

from kedge.engines import spawn
from kedge.engines.bounds import Bounds
from kedge.engines.loop import Loop, Timer
from kedge.engines.output import OutputPipes
from kedge.engines.rooms import DIED, Room
from kedge.engines.warden import Finding
from kedge.model.protocol import OutputCaptured
from kedge.model.spec import PROCESS, Launch

ORPHANED = "its fork server died"


class Keeper(Protocol):
    """What the supervisor is to a container."""

    def report(self, message: Any) -> None: ...
    def settle(self, container: Container) -> None: ...
    def stillborn(self, name: str, reason: str) -> None: ...


class Container:
    """What the supervisor holds of one container."""

    def __init__(self, launch: Launch, keeper: Keeper, loop: Loop) -> None:
        self.name = launch.container
        self.launch = launch
        self.bounds = Bounds()
        self.finding = Finding()
        self.room: Room | None = None
        self.process = 0
        self.pidfd: int | None = None
        self.own_child = False
        """Child of this process: started fresh, or left behind by its fork server."""
        self.condemned: float | None = None
        """To be killed as soon as it exists, with this grace."""
        self.killed = False
        self.gone = False
        self.fate: tuple[int | None, int | None] | None = None
        """(exit code, None) or (None, signal), once known."""
        self.why = ""
        """A reason that explains its end better than its fate does."""
        self.deadline: Timer | None = None
        self.output = OutputPipes(
            loop,
            lambda stream, data: keeper.report(
                OutputCaptured(self.name, stream, data, time.time(), launch.app, launch.pool)
            ),
            lambda: keeper.settle(self),
        )
        self._keeper = keeper
        self._handed: tuple[int, ...] = ()

    def hand_over(self) -> tuple[int, int, int, int]:
        """Descriptors for its process: what it is to be, its stdout, its stderr, its records."""
        pipes = self._handed = self.output.attach()
        descriptor = _sealed(msgspec.msgpack.encode(self.launch))
        self._handed = (descriptor, *pipes)
        return descriptor, *pipes

    def keep_own(self) -> None:
        """Closes this side's copies of what was handed over."""
        for descriptor in self._handed:
            os.close(descriptor)
        self._handed = ()

    def fail(self, reason: str) -> None:
        self.keep_own()
        self._keeper.stillborn(self.name, reason)

    def close(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        self.output.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None
        if self.room is not None:
            self.room.end()

    @property
    def blameless(self) -> bool:
        """It has ended because of another process."""
        return (self.own_child and self.why == ORPHANED) or self.why == DIED

    def explained(self, starved: bool) -> str:
        """Why it has ended. `starved`: the kernel has killed it for want of memory."""
        exit_code, number = self.fate or (None, None)
        if starved:
            return "killed by the kernel: the machine or its memory limit had no memory left"
        if self.finding.reason and (exit_code, number) != (0, None):
            return self.finding.reason
        if self.why:
            return self.why
        if self.killed and number == signal.SIGKILL:
            return "killed on request"
        if number is not None:
            try:
                return f"killed by signal {number} ({signal.Signals(number).name})"
            except ValueError:
                return f"killed by signal {number}"
        if exit_code is None:
            return "ended; nobody could say how"
        if exit_code == spawn.CANNOT_ENTER and self.launch.isolation.rung != PROCESS:
            return "what it is to find around it cannot be made; its output says why"
        return f"left with exit code {exit_code}" if exit_code else "left by itself"


def _sealed(data: bytes) -> int:
    """A descriptor of a nameless file that holds `data`: any size passes through a small message."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("kedge-launch")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor
