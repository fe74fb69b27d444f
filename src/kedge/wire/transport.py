"""Connections that carry messages: blocking ones for clients, containers and supervisors, asyncio ones for the
server.

Nobody stops reading because a peer does not: two sides that send before they read would wait for each other for ever.
Instead an asyncio connection ends once more than `max_unread` bytes wait for its peer, and `writable` lets a sender
that has much to say go at the peer's pace.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from kedge.wire.codec import FrameDecoder, FrameError, encode, encode_all

if TYPE_CHECKING:
    import ssl

    from kedge.wire.tls import TlsSocket

READ_SIZE = 64 * 1024
"""Bytes. `recv` allocates as much each time; above 128 KiB that would be a system call of its own."""
MAX_UNREAD = 512 * 1024 * 1024
"""Bytes that may wait for a peer which does not read. An honest one may owe a whole window of large values (1,000 of
256 KiB) while its program thinks; what owes twice as much is taken for dead."""
HANDSHAKE_S = 10.0
"""Seconds that a peer has for the handshake of TLS."""
CLOSE_PATIENCE_S = 5.0
"""Seconds that a peer has to read the last words of a connection that is being closed."""


class ConnectionLost(Exception):
    """The peer is gone, or said what no peer of ours says."""


class BlockingConnection:
    """A socket that sends and receives lists of messages. Sending is safe from many threads, receiving from one."""

    def __init__(self, sock: socket.socket | TlsSocket, union: Any) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._decoder = FrameDecoder(union)
        self._send_lock = threading.RLock()
        self._unsent: deque[bytes] = deque()
        """Frames of the thread that holds the lock: what it says in a signal handler or a finalizer, while it is in the
        middle of a frame, comes after that frame."""
        self._sending = False
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    @classmethod
    def connect(cls, address: str, union: Any, timeout: float = 10.0, tls_ca: str = "") -> BlockingConnection:
        """Connects to `/path/to/socket`, `tcp://host:port` or `tcps://host:port`. The last is under TLS, and so is any
        for which `tls_ca` names a file of certificates. OSError where nobody listens, or somebody else does."""
        if is_tcp(address):
            sock = socket.create_connection(split_tcp(address), timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls_ca or is_tls(address):
                return cls(_encrypted(sock, split_tcp(address)[0], tls_ca), union)
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
        """Sends one frame, or several where it would be too large; ConnectionLost where the peer is gone.

        FrameError where a single message is too large; the connection goes on then, and nothing of it was sent.
        """
        frames = list(encode_all(messages))
        try:
            with self._send_lock:
                self._unsent.extend(frames)
                if not self._sending:
                    self._send_all()
        except OSError as error:
            raise ConnectionLost(str(error)) from None

    def _send_all(self) -> None:
        self._sending = True
        try:
            while self._unsent:
                self._socket.sendall(self._unsent.popleft())
        finally:
            self._sending = False

    def receive(self, timeout: float | None = None) -> list[Any]:
        """The next messages; an empty list after `timeout` seconds. ConnectionLost at the end of the stream."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if deadline is not None:
                left = max(0.0, deadline - time.monotonic())
                if self._decoder.failure is None and not self._poll.poll(left * 1000):
                    return []
            try:
                data = b"" if self._decoder.failure is not None else self._socket.recv(READ_SIZE)
                if data is None:
                    continue  # a part of what is encrypted
                messages = self._decoder.feed(data)
            except (OSError, FrameError) as error:
                raise ConnectionLost(str(error)) from None
            if not data:
                raise ConnectionLost(self._last_words())
            if messages:
                return messages

    def close(self) -> None:
        """Wakes a blocked `receive`, then closes."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def _last_words(self) -> str:
        cut = self._decoder.pending
        return "the peer closed the connection" + (f" after {cut} bytes of an unfinished frame" if cut else "")


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
        max_unread: int = MAX_UNREAD,
    ) -> None:
        self.decoder = FrameDecoder(union)
        self.on_messages = on_messages
        """May be replaced: the owner's next state."""
        self.on_garbage: Callable[[AsyncConnection, str], None] = AsyncConnection.close
        """The peer sent what is no frame: whatever happens here, the connection must be closed in the end."""
        self._on_closed = on_closed
        self._max_unread = max_unread
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[Any] = []
        self._flush_planned = False
        self._lost = False
        self._paused = False
        self._reason = ""
        self.writable = asyncio.Event()
        """Cleared while the peer has not read what was sent before; set when there is no peer any more."""
        self.context: Any = None
        """Whatever the owner ties to this connection, such as the session it belongs to."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is one by behaviour, not by class
        self._transport = transport
        self.writable.set()
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._reason:
            transport.abort()  # nobody waits for it any more

    def data_received(self, data: bytes) -> None:
        try:
            messages = self.decoder.feed(data)
        except FrameError as error:
            self.on_garbage(self, str(error))
            return
        if messages:
            self.on_messages(self, messages)
            self.flush()
        if self.decoder.failure is not None and not self.closed:
            self.on_garbage(self, str(self.decoder.failure))

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        self._lost = True
        self._outgoing.clear()
        self.writable.set()
        cut = self.decoder.pending
        truncated = f"{cut} bytes of an unfinished frame were dropped" if cut else ""
        self._on_closed(self, self._reason or truncated or (str(exc) if exc else "closed by the peer"))

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    @property
    def connected(self) -> bool:
        """Whether there is a peer: not yet while it shakes hands, and not any more when it is gone."""
        return self._transport is not None

    @property
    def reached_at(self) -> str:
        """The address of this machine that the peer has connected to; empty over a Unix socket."""
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(name[0]) if isinstance(name, tuple) else ""

    @property
    def peer_socket(self) -> Any:
        """For looking at it; None where it is closed."""
        return self._transport.get_extra_info("socket") if self._transport is not None else None

    @property
    def unread(self) -> int:
        """Bytes that wait for the peer to read."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, message: Any) -> None:
        """Queues one message for the next frame. Dropped where the peer is gone: its end has been or will be told."""
        if self._lost:
            return
        self._outgoing.append(message)
        if not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        self._flush_planned = False
        transport = self._transport
        if not self._outgoing or transport is None:
            return
        messages, self._outgoing = self._outgoing, []
        if transport.is_closing():
            return
        try:
            transport.write(encode(messages))
        except FrameError:
            self._write_pieces(transport, messages)
        if not self.writable.is_set() and self.unread > self._max_unread:
            self.abort(f"the peer does not read: {self.unread} bytes wait for it")

    def close(self, reason: str = "") -> None:
        """Sends what is queued, then closes; `reason` reaches `on_closed`. A peer that does not read is cut off."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._reason = self._reason or reason
            self.flush()
            transport.close()
            if transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(CLOSE_PATIENCE_S, transport.abort)

    def abort(self, reason: str) -> None:
        """Closes at once, without what is queued; or as soon as there is a connection: one whose handshake fails never
        becomes one, and nobody is told of its end."""
        if not self._lost:
            self._reason = self._reason or reason
            self._outgoing.clear()
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self, paused: bool) -> None:
        """Leaves what the peer says in the kernel: for who is busy with what it said before."""
        if paused == self._paused or self._transport is None or self._transport.is_closing():
            return
        self._paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _write_pieces(self, transport: asyncio.Transport, messages: list[Any]) -> None:
        try:
            for frame in encode_all(messages):
                transport.write(frame)
        except FrameError as error:
            self.abort(str(error))


def _encrypted(sock: socket.socket, host: str, ca: str) -> TlsSocket:
    from kedge.wire import tls  # only where it is used: containers and local programs never do

    try:
        return tls.TlsSocket(sock, tls.context_for(ca), host)
    except BaseException:
        sock.close()
        raise


def is_tcp(address: str) -> bool:
    return address.startswith(("tcp://", "tcps://"))


def is_tls(address: str) -> bool:
    return address.startswith("tcps://")


def split_tcp(address: str) -> tuple[str, int]:
    """Host and port of `tcp://host:port`; ("", 0) for the path of a Unix socket. ValueError where it is neither.

    >>> split_tcp("tcp://127.0.0.1:9000"), split_tcp("tcps://[::1]:80"), split_tcp("/run/plane.sock")
    (('127.0.0.1', 9000), ('::1', 80), ('', 0))
    """
    if not is_tcp(address):
        return "", 0
    host, _, port = address.partition("://")[2].rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is no address to listen or connect to; write tcp://HOST:PORT")
    return host.strip("[]"), int(port)


async def listen(
    address: str, make: Callable[[], AsyncConnection], context: ssl.SSLContext | None = None
) -> asyncio.Server:
    """Listens on a path (mode 0600, replacing a dead socket) or on `tcp://host:port`, there under TLS where there is a
    `context`."""
    loop = asyncio.get_running_loop()
    if is_tcp(address):
        host, port = split_tcp(address)
        patience = None if context is None else HANDSHAKE_S
        return await loop.create_server(
            make, host, port, reuse_address=True, ssl=context, ssl_handshake_timeout=patience
        )
    try:
        os.unlink(address)
    except FileNotFoundError:
        pass
    mask = os.umask(0o177)
    try:
        return await loop.create_unix_server(make, address)
    finally:
        os.umask(mask)
