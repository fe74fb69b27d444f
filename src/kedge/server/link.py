"""Whoever the driver has messages for: a connection, or a room of the server that is a session like any other."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol


class Link(Protocol):
    writable: asyncio.Event
    """Set while the other side keeps up with what it is sent."""

    @property
    def unread(self) -> int:
        """Bytes that wait to be read at the other side."""

    @property
    def closed(self) -> bool: ...

    def send(self, message: Any) -> None:
        """Takes one message. It may wait for `flush`."""

    def flush(self) -> None: ...

    def close(self, reason: str) -> None: ...

    def pause_reading(self, paused: bool) -> None: ...
