"""User values in transit: opaque to everything between the caller and the container."""

from __future__ import annotations

from msgspec import Struct

INLINE_LIMIT = 256 * 1024
"""Bytes a payload may have inside a frame. Above it a file carries the value, so that the plane never copies it."""

PICKLE = "p"
"""pickle protocol 5, everything by reference: readable by any Python that can import the same names."""
PICKLE_BY_VALUE = "v"
"""cloudpickle with code by value: readable by the same Python minor version only (`python`)."""


class Payload(Struct, frozen=True, array_like=True, gc=False):
    """Serialised bytes, inline in `data` or in the file `blob` (a name under KEDGE_HOME/blobs)."""

    format: str = PICKLE
    data: bytes = b""
    blob: str = ""
    size: int = 0
    """Bytes of the whole value where it is in a file."""
    python: str = ""
    """`3.11` and the like, set where the format depends on it."""


class ErrorInfo(Struct, frozen=True, array_like=True, gc=False):
    """An exception on its way home. `payload` holds the pickled exception where that worked."""

    type: str
    message: str
    traceback: str = ""
    """The remote traceback as text, user frames only, ready to print."""
    payload: Payload | None = None
    module: str = ""
    notes: tuple[str, ...] = ()
    frames: tuple[tuple[str, int, str, str], ...] = ()
    """(file, line number, function, source line) of the user's frames, outermost first."""
    retry_after: float = 0.0
    """Seconds after which another try may succeed, where a limit was reached; 0 where that is not known."""


SUCCESS = "success"
FAILURE = "failure"
"""User code raised."""
TIMEOUT = "timeout"
TERMINATED = "terminated"
"""Cancelled, whatever the code returned."""
INIT_FAILURE = "init_failure"
"""The container could not import the code or run its enter hooks."""
INTERNAL_FAILURE = "internal_failure"
"""The container was lost more often than the infrastructure budget allows."""


class Result(Struct, frozen=True, array_like=True, gc=False):
    """The outcome of one attempt. `count` is the number of values a generator has yielded."""

    status: str = SUCCESS
    payload: Payload | None = None
    error: ErrorInfo | None = None
    count: int = 0
