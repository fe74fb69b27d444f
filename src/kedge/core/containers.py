"""One container as the core sees it.

STARTING → READY → DRAINING → GONE, and from every state to GONE, since a process may end at any time. A container is in
the load index of its pool exactly while it is READY and may take inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.core.scheduler import Placement
from kedge.model.payload import ErrorInfo
from kedge.model.protocol import ContainerLost

if TYPE_CHECKING:
    from kedge.core.calls import Input
    from kedge.core.pool import Pool

STARTING = "starting"
READY = "ready"
DRAINING = "draining"
GONE = "gone"

TRANSITIONS = {STARTING: (READY, DRAINING, GONE), READY: (DRAINING, GONE), DRAINING: (GONE,), GONE: ()}


class Container:
    __slots__ = (
        "concurrency",
        "credits",
        "dismissed",
        "doomed",
        "finished_at",
        "heaped",
        "heard_at",
        "held",
        "id",
        "idle_look_at",
        "idle_since",
        "indexed",
        "leases",
        "load",
        "methods",
        "most",
        "order",
        "placement",
        "pool",
        "process",
        "quarantined",
        "recalled",
        "requested_at",
        "shared",
        "slots",
        "stall_watched",
        "state",
        "suspect",
        "used",
    )

    def __init__(self, id: str, order: int, pool: Pool, placement: Placement, now: float) -> None:
        self.id = id
        self.order = order
        self.pool = pool
        self.placement = placement
        self.state = STARTING
        self.process = 0
        self.requested_at = now
        self.finished_at = now
        """When it last reported an input."""
        self.heard_at = now
        """When its runtime last gave a sign of life."""
        self.idle_since = now
        self.idle_look_at = 0.0
        """When it is looked at next, whether it is idle for long enough; 0 where that is not planned."""
        self.stall_watched = False
        self.recalled = False
        """Credits were called back because nothing moved; none are given until something does."""
        self.used = False
        self.quarantined = False
        """It holds inputs that nobody can end: it gets no more, and goes when the others are done."""
        self.concurrency = pool.spec.concurrency
        """What it was started with."""
        self.held = False
        """Kept for an input that must run alone: the router does not see it."""
        self.suspect: Input | None = None
        """The one that it is held for: to blame if it dies."""
        self.doomed = False
        """It is killed on purpose: what it ran is not to blame for its end."""
        self.dismissed = False
        """The engine has been told when to kill it."""
        self.slots = 0
        """Inputs that it takes at once by its own wish; 0: as many as its pool says."""
        self.most = 0
        """Slots that were taken when fewer were allowed from then on."""
        self.leases: dict[int, Input] = {}
        """Everything granted to it, slots and credits."""
        self.credits: dict[int, Input] = {}
        """The part of `leases` that has no slot yet, in the order in which it will start."""
        self.shared = 0
        """Leases beyond one per slot: the further members of batches."""
        self.methods: dict[str, int] = {}
        """Slots taken per method; kept only where methods have limits."""
        self.load = 0
        self.heaped = 0
        self.indexed = False

    @property
    def running(self) -> int:
        """Slots taken, also by code whose result nobody wants any more."""
        return len(self.leases) - len(self.credits) - self.shared

    @property
    def idle(self) -> bool:
        return not self.leases

    def become(self, state: str) -> None:
        assert state in TRANSITIONS[self.state], f"{self} cannot become {state}"
        self.state = state

    def __repr__(self) -> str:
        return f"<Container {self.id} {self.state}: {self.running} running, {len(self.credits)} credited>"


def how_it_ended(message: ContainerLost) -> str:
    """In words, to go after "it was": what the engine says, or what its numbers say."""
    if message.reason:
        return message.reason
    if message.out_of_memory:
        return "out of memory"
    if message.signal is not None:
        return f"killed by signal {message.signal}"
    return "lost" if message.exit_code is None else f"left with exit code {message.exit_code}"


def start_error(message: ContainerLost) -> ErrorInfo:
    text = f"the container died while it was starting: it was {how_it_ended(message)}; its log may say why"
    return ErrorInfo("InternalFailure", text)


def obituary(message: ContainerLost, inputs: int, starting: bool) -> str:
    """What the log says of a container that took `inputs` open inputs along; nothing where it was to go, as far as one
    can see."""
    cause = how_it_ended(message).removeprefix("left with ")
    if starting:
        return f"the container died while it was starting: {cause}"
    if inputs:
        return f"the container died: {cause} ({inputs} input{'s were' if inputs > 1 else ' was'} in it)"
    # One that ran nothing may have been told to leave: then code 1 and these signals are no surprise.
    surprising = message.out_of_memory or (message.exit_code or 0) > 1 or message.signal not in (None, 9, 15)
    return f"the container died: {cause} (no input was in it)" if surprising else ""


def crash_error(message: ContainerLost, times: int) -> ErrorInfo:
    return ErrorInfo(
        "ExecutionError",
        f"the container died {times} times in a row while it was starting; the last one was {how_it_ended(message)}. "
        "Its output shows what it did last; starts go on at growing intervals.",
    )
