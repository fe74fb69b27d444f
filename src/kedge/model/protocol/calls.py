"""Calls as clients know them: inputs go out, results and values of generators come back, what is durable is kept.

The client makes the id of a call; an input is (call, index). How inputs get to containers is in `containers`.
"""

from __future__ import annotations

from msgspec import Struct

from kedge.model.payload import ErrorInfo, Payload, Result
from kedge.model.protocol.base import Message

# ---------------------------------------------------------------- client → plane


class InputsSubmitted(Message, frozen=True):
    """Consecutive inputs `first`, `first + 1`, … of one call. Known ones are duplicates and are dropped."""

    call: str
    pool: str
    first: int
    payloads: list[Payload]
    method: str = ""
    durable: bool = False
    """A spawned call: survives its caller, and its results are kept until they expire."""
    parent: str = ""
    """Input id of the caller where the call is made inside a container."""
    stream: bool = False
    """A generator: values travel as StreamValues, the result only closes the stream."""
    total: int = -1
    """The number of inputs of the whole call, where it is known already; saves a CallClosed."""
    timeout: float = 0.0
    """Seconds that each input of this call may run; 0: as long as its function says."""
    queue_timeout: float = 0.0
    """Seconds that each of them may wait for its first slot; 0: as long as its function says."""


class CallClosed(Message, frozen=True):
    """No further inputs: the call has `total` of them."""

    call: str
    total: int


class CallCancelled(Message, frozen=True):
    call: str
    terminate_containers: bool = False
    indices: list[int] | None = None
    """None: the whole call."""
    request: int = 0
    """Answered by a Reply without a value, where it is not 0."""


class CallRequested(Message, frozen=True):
    """Asks what is known of a call: answered by Reply with {"inputs": n, "done": m, "status": [...]}."""

    request: int
    call: str


class OutputsRequested(Message, frozen=True):
    """Asks for the results of a durable call, `start` up to `end` (exclusive; None: all). Answered by OutputsDelivered
    as they come, and by CallRefused where there is no such call, or none that could ever have these results."""

    call: str
    start: int = 0
    end: int | None = None
    request: int = 0


class OutputsForgotten(Message, frozen=True):
    """The session no longer waits for these results."""

    call: str
    request: int = 0


# ---------------------------------------------------------------- plane → client


class InputsAccepted(Message, frozen=True):
    """A durable call's inputs are on disk."""

    call: str
    first: int
    count: int


class CallRefused(Message, frozen=True):
    """The call cannot run at all: no such pool, its app has stopped, or it is unknown or expired."""

    call: str
    error: ErrorInfo
    request: int = 0


class Output(Struct, frozen=True, array_like=True, gc=False):
    index: int
    result: Result


class OutputsDelivered(Message, frozen=True):
    call: str
    outputs: list[Output]
    request: int = 0


# ---------------------------------------------------------------- container ↔ client: values of a generator

STREAM_WINDOW = 64
"""Values of a generator that every attempt may send before its reader has credited any. The reader credits what it has
taken, and what it drops because it has had it from an earlier attempt."""


class StreamValues(Message, frozen=True):
    """Values `first`, `first + 1`, … of a generator. From the container, relayed to the caller."""

    call: str
    index: int
    first: int
    values: list[Payload]


class StreamCredited(Message, frozen=True):
    """The reader of a stream takes `values` more of them. Relayed to the container, not seen by the core."""

    call: str
    index: int
    values: int


# ---------------------------------------------------------------- plane → store


class OutputsRecorded(Message, frozen=True):
    """To the store: results of a durable call that must survive."""

    call: str
    outputs: list[Output]
    pool: str = ""
    method: str = ""


class PayloadReleased(Message, frozen=True):
    """To the store: these payload files held arguments of inputs that will not run again."""

    blobs: list[str]


class OutputsWanted(Message, frozen=True):
    """To the store: send these recorded results to this session as OutputsDelivered.

    With `indices` None the plane does not know the call (any more): the store answers with all that it has recorded
    from `start` up to `end`, and with CallRefused for what is not there."""

    session: str
    call: str
    indices: list[int] | None
    request: int
    start: int = 0
    end: int | None = None


class CallWanted(Message, frozen=True):
    """To the store: answer this session's CallRequested about a call that the plane does not know (any more)."""

    session: str
    call: str
    request: int


# ---------------------------------------------------------------- store → plane


class CallRestored(Message, frozen=True):
    """From the store, for a durable call that the plane does not know and that is not over: what of it is done, as
    (index, status). After a restart, and before inputs that are sent again. Its open inputs follow as
    InputsSubmitted."""

    call: str
    pool: str
    method: str
    total: int
    done: list[tuple[int, str]]
