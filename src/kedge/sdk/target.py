"""What a call is aimed at: all that the invocation layer needs to know about a handle, as one frozen value."""

from __future__ import annotations

from msgspec import Struct

from kedge.model.spec import Variant


class Limits(Struct, frozen=True):
    """What single calls may bring along. Containers do not depend on it, so it asks for no pool of its own."""

    timeout: float = 0.0
    """Seconds that each input may run; 0: as long as its function or method says."""
    queue_timeout: float = 0.0
    """Seconds that each input may wait for its first slot; 0: as long as its function says."""


NO_LIMITS = Limits()


class Target(Struct, frozen=True):
    """One callable in one pool of one running app. Equal handles give equal targets."""

    app: str
    """Id of the running app."""
    pool: str
    method: str = ""
    """Name of the method; empty for a function."""
    variant: Variant | None = None
    """Announce this (VariantBound) before the first input of the pool; None for the pool that the app declared."""
    is_generator: bool = False
    name: str = ""
    """For messages: `square`, `Model.generate`."""
    timeout: float = 0.0
    """Of its calls, as in `Limits`, and so is the next one."""
    queue_timeout: float = 0.0
