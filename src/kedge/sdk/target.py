"""What a call is aimed at: all that the invocation layer needs to know about a handle, as one frozen value."""

from __future__ import annotations

from msgspec import Struct

from kedge.model.spec import Variant


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
