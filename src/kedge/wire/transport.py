"""Connections that carry messages: blocking ones for clients, containers and supervisors, asyncio ones for the
server."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

from kedge.wire.codec import FrameDecoder, FrameError, encode

READ_SIZE = 256 * 1024


class ConnectionLost(Exception):
    """The peer is gone, or said what no peer of ours says."""


class BlockingConnection:
    """A socket that sends and receives lists of messages. Sending is safe from many threads, receiving from one."""

    def __init__(self, sock: socket.socket, union: Any) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._decoder = FrameDecoder(union)
        self._send_lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    @classmethod
    def connect(cls, address: str, union: Any, timeout: float = 10.0) -> BlockingConnection:
        """Connects to `/path/to/socket` or `tcp://host:port`. OSError where nobody listens."""
        host, port = split_tcp(address)
        if port:
            sock = socket.create_connection((host, port), timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            try:
                sock.connect(address)
            except BaseException:
                sock.close()
                raise
        return cls(sock, union)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, messages: list[Any]) -> None:
        """Sends one frame; ConnectionLost where the peer is gone."""
        frame = encode(messages)
        try:
            with self._send_lock:
                self._socket.sendall(frame)
        except OSError as error:
            raise ConnectionLost(str(error)) from None

    def receive(self, timeout: float | None = None) -> list[Any]:
        """The next messages; an empty list after `timeout` seconds. ConnectionLost at the end of the stream."""
        while True:
            if timeout is not None and not self._poll.poll(timeout * 1000):
                return []
            try:
                data = self._socket.recv(READ_SIZE)
            except OSError as error:
                raise ConnectionLost(str(error)) from None
            if not data:
                raise ConnectionLost("the peer closed the connection")
            try:
                messages = self._decoder.feed(data)
            except FrameError as error:
                raise ConnectionLost(str(error)) from None
            if messages:
                return messages

    def close(self) -> None:
        """Wakes a blocked `receive`, then closes."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


class AsyncConnection(asyncio.Protocol):
    """One connection of an event loop. Messages sent while others are handled leave in one frame.

    `on_messages(connection, messages)` and `on_closed(connection, reason)` run on the loop. `send` only collects;
    `flush` writes, and happens by itself at the end of `on_messages` and of the loop's iteration.
    """

    def __init__(
        self,
        union: Any,
        on_messages: Callable[[AsyncConnection, list[Any]], None],
        on_closed: Callable[[AsyncConnection, str], None],
    ) -> None:
        self._decoder = FrameDecoder(union)
        self.on_messages = on_messages
        """May be replaced: the owner's next state."""
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[Any] = []
        self._flush_planned = False
        self._reason = ""
        self.writable = asyncio.Event()
        self.context: Any = None
        """Whatever the owner ties to this connection, such as the session it belongs to."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.writable.set()
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._decoder.feed(data)
        except FrameError as error:
            self.close(str(error))
            return
        if messages:
            self.on_messages(self, messages)
            self.flush()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        self._outgoing.clear()
        self.writable.set()
        truncated = (
            f"{self._decoder.pending} bytes of an unfinished frame were dropped" if self._decoder.pending else ""
        )
        self._on_closed(self, self._reason or truncated or (str(exc) if exc else "closed by the peer"))

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def send(self, message: Any) -> None:
        """Queues one message for the next frame. Dropped where the peer is gone: its end has been or will be told."""
        self._outgoing.append(message)
        if not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        self._flush_planned = False
        if self._outgoing and self._transport is not None:
            frame = encode(self._outgoing)
            self._outgoing.clear()
            self._transport.write(frame)

    def close(self, reason: str = "") -> None:
        """Sends what is queued, then closes; `reason` reaches `on_closed`."""
        if self._transport is not None:
            self._reason = self._reason or reason
            self.flush()
            self._transport.close()


def split_tcp(address: str) -> tuple[str, int]:
    """Host and port of `tcp://host:port`; ("", 0) for the path of a Unix socket.

    >>> split_tcp("tcp://127.0.0.1:9000")
    ('127.0.0.1', 9000)
    """
    if not address.startswith("tcp://"):
        return "", 0
    host, _, port = address[len("tcp://") :].rpartition(":")
    return host.strip("[]"), int(port)


async def listen(address: str, make: Callable[[], AsyncConnection]) -> asyncio.Server:
    """Listens on a path (mode 0600, replacing a dead socket) or on `tcp://host:port`."""
    loop = asyncio.get_running_loop()
    host, port = split_tcp(address)
    if address.startswith("tcp://"):
        return await loop.create_server(make, host, port, reuse_address=True)
    try:
        os.unlink(address)
    except FileNotFoundError:
        pass
    mask = os.umask(0o177)
    try:
        return await loop.create_unix_server(make, address)
    finally:
        os.umask(mask)
