"""Inputs and results between the plane and a container, and what passes between the ingress and web code.

Each grant of an input has a lease, and all that the container says about the input carries it.
"""

from __future__ import annotations

from msgspec import Struct

from kedge.model.payload import ErrorInfo, Payload, Result
from kedge.model.protocol.base import Message
from kedge.model.spec import Concurrency
from kedge.model.web import Received, Sent

# ---------------------------------------------------------------- plane → container


class Dispatch(Struct, frozen=True, array_like=True, gc=False):
    """One input for a container. `lease` names this attempt for the rest of its life: the fence.

    A `credited` one goes beyond the free slots: it is granted, not started, and may be revoked until it starts."""

    lease: int
    call: str
    index: int
    method: str
    payload: Payload
    attempt: int = 0
    credited: bool = False
    stream: bool = False
    timeout: float = 0.0
    """Seconds it may run; 0: as long as its function says."""
    batch: int = 0
    """Inputs of one batch share this number and a slot; 0: it is an input of its own."""
    members: int = 0
    """How many inputs its batch has; they come in one frame after the other, and start together."""


class InputsDispatched(Message, frozen=True):
    inputs: list[Dispatch]


class InputsCancelled(Message, frozen=True):
    """The work of these leases is no longer wanted. `reason` is `cancelled` or `timeout`."""

    leases: list[int]
    reason: str = "cancelled"


class InputsRecalled(Message, frozen=True):
    """Asks credited inputs back. Answered by InputsReturned with those that had not started."""

    leases: list[int]


class ConcurrencyChanged(Message, frozen=True):
    concurrency: Concurrency


class ContainerDrained(Message, frozen=True):
    """To a container: take nothing new, finish what runs, run the exit hooks, leave."""

    reason: str = ""
    cancel: bool = False
    """Cancel what runs instead of finishing it."""


# ---------------------------------------------------------------- container → plane: its life


class ContainerReady(Message, frozen=True):
    """Imports and enter hooks are done; inputs may come."""

    imports: list[str] = []
    """Modules of site-packages that the user's code imported, dearest first: a fork server may hold them."""
    startup_s: float = 0.0


class ContainerFailed(Message, frozen=True):
    """Import or enter hooks failed. The container leaves by itself after this."""

    error: ErrorInfo


class ContainerLeaving(Message, frozen=True):
    """The container's own code wants it to finish what runs and leave. Answered by ContainerDrained."""

    reason: str = ""


class Heartbeat(Message, frozen=True):
    """Every few seconds while something runs. Silence is a diagnosis, never grounds to kill."""

    running: int
    loop_lag_s: float = 0.0
    loop_blocks: int = 0
    """How often the event loop was blocked for long since the last heartbeat."""


# ---------------------------------------------------------------- container → plane: its inputs


class InputsStarted(Message, frozen=True):
    """Credited inputs whose user code is about to run: from now on they are attempts."""

    leases: list[int]


class Finished(Struct, frozen=True, array_like=True, gc=False):
    lease: int
    result: Result
    run_s: float = 0.0
    """Seconds from the start of user code to its end."""


class InputsFinished(Message, frozen=True):
    inputs: list[Finished]
    started: list[int] = []
    """Credited leases that have started and not finished."""


class InputsReturned(Message, frozen=True):
    leases: list[int]


class InputsOverran(Message, frozen=True):
    """The time of these inputs is over and their code was told, but has not ended yet: the caller need not wait."""

    leases: list[int]


class SlotsChanged(Message, frozen=True):
    """The container's own code has changed how many inputs it takes at once, within `max_inputs`."""

    inputs: int


# ---------------------------------------------------------------- ingress ↔ container, not seen by the core


class WebReceived(Message, frozen=True):
    """What follows a Request, in its order."""

    call: str
    events: list[Received]


class WebSent(Message, frozen=True):
    """What the code of a Request answers, in its order."""

    call: str
    events: list[Sent]


class WebCredited(Message, frozen=True):
    """The reader of one direction has taken so many bytes of bodies or messages: as many more may follow."""

    call: str
    size: int
