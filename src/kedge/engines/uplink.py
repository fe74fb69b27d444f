"""The supervisor's connection to the server: never blocks, never loses, and says when it is congested."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from kedge.engines.loop import READ, WRITE, Loop
from kedge.model import protocol
from kedge.wire.codec import FrameDecoder, FrameError, encode

_READ_SIZE = 256 * 1024
_CONGESTED = 4 * 1024 * 1024
"""Bytes that may wait for a slow server before container output is left in its pipes."""
_RELIEVED = 1024 * 1024


class Uplink:
    """Frames of `protocol.ToSupervisor` in, of `protocol.FromSupervisor` out."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_messages: Callable[[list[Any]], None],
        on_closed: Callable[[], None],
        on_congestion: Callable[[bool], None],
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._socket = sock
        self._decoder = FrameDecoder(protocol.ToSupervisor)
        self._on_messages = on_messages
        self._on_closed = on_closed
        self._on_congestion = on_congestion
        self._messages: list[Any] = []
        self._waiting = bytearray()
        self._blocked = False
        self._congested = False
        self._closed = False
        loop.watch(sock.fileno(), self._ready)

    @property
    def congested(self) -> bool:
        return self._congested

    def send(self, message: Any) -> None:
        """Sends with the other messages of this turn of the loop. Dropped where the server is gone."""
        self._messages.append(message)
        if len(self._messages) == 1:
            self._loop.later(0, self.flush)

    def flush(self) -> None:
        """Writes what the server takes now; the rest follows when it reads again."""
        if self._messages and not self._closed:
            self._waiting += encode(self._messages)
            self._write()
        self._messages.clear()

    def _ready(self) -> None:
        if self._waiting:
            self._write()
        if self._closed:
            return
        try:
            data = self._socket.recv(_READ_SIZE)
            messages = self._decoder.feed(data) if data else None
        except BlockingIOError:
            return
        except (OSError, FrameError):
            messages = None
        if messages is None:
            self._close()
            return
        self._on_messages(messages)

    def _write(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: self._socket.send(self._waiting)]
        except BlockingIOError:
            pass
        except OSError:
            self._close()
            return
        if bool(self._waiting) != self._blocked:
            self._blocked = bool(self._waiting)
            self._loop.watch(self._socket.fileno(), self._ready, READ | WRITE if self._blocked else READ)
        if not self._congested and len(self._waiting) > _CONGESTED:
            self._congested = True
            self._on_congestion(True)
        elif self._congested and len(self._waiting) < _RELIEVED:
            self._congested = False
            self._on_congestion(False)

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._waiting.clear()
            self._loop.forget(self._socket.fileno())
            self._on_closed()
