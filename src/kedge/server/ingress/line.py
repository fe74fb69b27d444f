"""The transport of one client: who it is, what is written to it, whether it is read, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from math import inf
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from kedge.server.ingress.ingress import Ingress

LINGER_S = 2.0
"""Seconds in which a client that still sends can read why nobody listens. A connection closed at once would take the
answer away from it."""
FLUSH_S = 75.0
"""Seconds in which a client must have read the last answer."""
JOIN_LIMIT = 64 * 1024
"""Bytes up to which a piece of a response is copied together with what stands around it, to be written at once: a copy
costs less than a system call."""
LOOPBACK = ("127.", "::1", "::ffff:127.")
_GONE = (7, 8)
"""TCP_CLOSE and TCP_CLOSE_WAIT: the client has hung up."""


class Line(asyncio.Protocol):
    """The base of a connection."""

    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress
        self.deadline = inf
        """When the ingress has to look what is the matter."""
        self.choked = False
        """The client does not keep up with reading."""
        self.unread = False
        """What the client sends is left with the kernel."""
        self.is_shut = False
        """The last word has been said."""
        self.client: tuple[str, int] | None = None
        self.here: tuple[str, int | None] | None = None
        """The address that the client has reached."""
        self.scheme = "http"
        self.is_trusted = False
        """A proxy whose word about the client behind it is believed."""
        self.is_open = True
        """The address is no loopback address, or a proxy leads to it: other machines may know it by any name."""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by behaviour, not by class
        trusting = self.ingress.trust_forwarded
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # The only way to hear of a client that has vanished without a word.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer, here = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if isinstance(peer, tuple):
            self.client = (str(peer[0]), int(peer[1]))
            self.is_trusted = trusting and self.client[0].startswith(LOOPBACK)
        if isinstance(here, tuple):
            self.here = (str(here[0]), int(here[1]))
            self.is_open = trusting or not self.here[0].startswith(LOOPBACK)
        if transport.get_extra_info("sslcontext") is not None:
            self.scheme = "https"

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        self.is_shut = True
        self.deadline = inf

    def pause_writing(self) -> None:
        self.choked = True

    def resume_writing(self) -> None:
        self.choked = False

    @property
    def has_hung_up(self) -> bool:
        """Whether the client is gone, where that cannot be heard because it is not read."""
        transport = self._transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is None or not hasattr(socket, "TCP_INFO"):
            return False
        try:
            state: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        except OSError:
            return False
        return state[0] in _GONE

    def write(self, parts: list[bytes]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or not parts:
            return
        if len(parts) == 1:
            transport.write(parts[0])
        elif max(map(len, parts)) <= JOIN_LIMIT:
            transport.write(b"".join(parts))
        else:
            for part in parts:  # `writelines` of some versions of asyncio never says that the client is behind
                transport.write(part)

    def read(self, wanted: bool) -> None:
        """Whether to read what the client sends, or leave it with the kernel."""
        transport = self._transport
        if wanted is self.unread and transport is not None and not transport.is_closing():
            self.unread = not wanted
            if wanted:
                transport.resume_reading()
            else:
                transport.pause_reading()

    def shut(self, linger: bool = False) -> None:
        """Ends it after what has been written. `linger`: the client may still be sending, and must be able to read."""
        transport = self._transport
        self.is_shut = True
        if transport is None or transport.is_closing():
            return
        if linger and transport.can_write_eof():
            transport.write_eof()
            self.read(True)
            self.deadline = self.ingress.now + LINGER_S
        else:
            transport.close()
            self.deadline = self.ingress.now + FLUSH_S

    def abort(self) -> None:
        """Ends it at once, so that the client sees that something is missing."""
        self.is_shut = True
        if self._transport is not None:
            self._transport.abort()
